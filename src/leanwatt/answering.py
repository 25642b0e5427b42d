"""One ticket, one answer: the winner at work, outside a study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from leanwatt import catalog
from leanwatt.attribution import Rolling
from leanwatt.contracts import Session
from leanwatt.errors import StudyError
from leanwatt.ledger import Ledger
from leanwatt.question import Answer, Example, Generate, Question, Score
from leanwatt.recipe import Trial
from leanwatt.study import Study

PATIENCE_SECONDS = 10.0
"""An answer is repeated for so long, so that sensors see it: enough for a CPU's or a GPU's, not for a plug's."""


def answer(study: Study, trial: Trial, artifact: Path, ticket: str) -> dict[str, Any]:
    """`causes`, `response`, `cpu_seconds` and `energy` for one ticket. Raises StudyError for an empty ticket."""
    if not ticket.strip():
        raise StudyError("The ticket is empty. Give its text, or - to read it from standard input.")
    questions = {
        choice.name: _about(catalog.build(choice).examples(trial.variant.fold), ticket) for choice in study.tasks
    }
    with catalog.build(study.meter).open() as read, catalog.build(trial.engine).open(artifact, 1) as session:
        session.answer(list(questions.values()))  # Warm: the first answer pays for what later ones do not.
        ledger, window = Ledger(read), Rolling(read)
        answers = dict(zip(questions, _repeated(session, list(questions.values()), ledger, window), strict=True))
    return {
        "causes": next((_causes(questions[n], a) for n, a in answers.items() if a.scores), ()),
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


def _about(examples: Sequence[Example], ticket: str) -> Question:
    """The task's question, with this ticket in place of an old one."""
    question = examples[0].question
    if not isinstance(question, Score | Generate):
        raise StudyError("This task asks nothing of a ticket.")
    return replace(question, prompt=replace(question.prompt, body=ticket.strip()))


def _causes(question: Question, found: Answer) -> tuple[tuple[str, float], ...]:
    """Options with their share of the probability, the likeliest first."""
    if not isinstance(question, Score):
        return ()
    top = max(found.scores)
    weights: Mapping[str, float] = {o: math.exp(s - top) for o, s in zip(question.options, found.scores, strict=True)}
    total = sum(weights.values())
    ordered = sorted(weights.items(), key=lambda pair: -pair[1])
    return tuple((option, weight / total) for option, weight in ordered)
