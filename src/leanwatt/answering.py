"""One ticket, one answer: the winner at work, outside a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leanwatt import catalog
from leanwatt.attribution import Rolling
from leanwatt.contracts import Session
from leanwatt.form import Form, likely
from leanwatt.ledger import Ledger
from leanwatt.question import Answer, Generate, Question
from leanwatt.recipe import Trial
from leanwatt.study import Study

PATIENCE_SECONDS = 10.0
"""An answer is repeated for so long, so that sensors see it: enough for a CPU's or a GPU's, not for a plug's."""


def answer(study: Study, trial: Trial, artifact: Path, ticket: str) -> dict[str, Any]:
    """`causes`, `response`, `cpu_seconds` and `energy` for one ticket. Raises StudyError for an empty ticket."""
    questions = Form.of(study, trial.variant.fold).about(ticket)
    with catalog.build(study.meter).open() as read, catalog.build(trial.engine).open(artifact, 1) as session:
        session.answer(list(questions.values()))  # Warm: the first answer pays for what later ones do not.
        ledger, window = Ledger(read), Rolling(read)
        answers = dict(zip(questions, _repeated(session, list(questions.values()), ledger, window), strict=True))
    return {
        "causes": next((likely(questions[n], a) for n, a in answers.items() if a.scores), ()),
        "response": next((a.text for n, a in answers.items() if isinstance(questions[n], Generate)), None),
        "cpu_seconds": ledger.measurements[0].cpu_seconds,
        "energy": window.share(*answers.values()),
    }


def _repeated(session: Session, questions: list[Question], ledger: Ledger, window: Rolling) -> Sequence[Answer]:
    """The answers, given again until the sensors have seen enough of them, or would take longer than one waits."""
    spent = 0.0
    while True:
        with ledger.stage("answer"):
            answers = session.answer(questions)
        spent += ledger.measurements[-1].seconds
        window.add(*answers, seconds=ledger.measurements[-1].seconds)
        if window.window() is not None or max(spent, window.needed_seconds()) > PATIENCE_SECONDS:
            return answers
