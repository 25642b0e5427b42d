"""The winner as a folder for others: Hugging Face files or an engine's own form, checked before it is called done.

An engine whose converted form lies beside the model, in a folder that begins with the engine's name, can be exported
by that name; `onnx` and `gguf` are other words for two of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leanwatt import agreement, catalog
from leanwatt.card import card
from leanwatt.contracts import Session
from leanwatt.errors import StoreError, StudyError, not_among
from leanwatt.offer import Offer
from leanwatt.prompt import VERSION as PROMPT_VERSION
from leanwatt.question import Answer, Question
from leanwatt.ranking import Ranking
from leanwatt.recipe import Choice, digest

PLAIN = "huggingface"
WORDS = {"onnx": "onnxruntime", "gguf": "llama_cpp"}
"""What a form is called, where it is not called after its engine."""
CHECKED = 8
"""Tickets on which an export is compared with the original."""
CLOSE = 1e-3
"""Scores further apart than this are not the same."""
_ORIGINAL = ("*.safetensors", "*.safetensors.index.json", "adapter")
"""Weights that an engine's own form replaces."""


@dataclass(frozen=True)
class Check:
    """What the comparison with the original found, on real tickets."""

    answers: int
    same: int
    """Answers that are those of plain transformers at the saved precision: the same option, the same words."""


def export(ranking: Ranking, offer: Offer, target: Path, form: str, tickets: Sequence[str]) -> Path:
    """Write the offer's model to `target` with a card. Raises StudyError, StoreError, and what the engine raises.

    `tickets` are real ones: the export must answer them as the original does.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StudyError(f"{target}: is there already and not empty. Give a new folder.")
    if not tickets:
        raise StudyError("export: there is no validation ticket to check the export with.")
    shaped = offer if form == PLAIN else _in_engine(offer, form)
    questions = [question for ticket in tickets[:CHECKED] for question in offer.form.about(ticket).values()]
    with _whole_or_nothing(target):
        _copy(offer.artifact, target)
        found = _as_saved(offer, target, questions) if form == PLAIN else _converted(shaped, target, questions)
        made = f"{_contents(shaped, form, target)} Checked on {len(tickets[:CHECKED])} tickets: {found.same} of "
        made += f"{found.answers} answers are those of the saved model in plain transformers."
        (target / "README.md").write_text(card(ranking, offer.trial, made), encoding="utf-8")
        (target / "provenance.json").write_text(json.dumps(provenance(shaped), indent=1), encoding="utf-8")
    return target


@contextmanager
def _whole_or_nothing(target: Path) -> Iterator[None]:
    """A folder that fails is not left behind. Raises StoreError where the disk fails."""
    is_done = False
    try:
        yield
        is_done = True
    except OSError as error:
        raise StoreError(f"{target}: cannot be written ({error.strerror}).") from error
    finally:
        if not is_done:
            shutil.rmtree(target, ignore_errors=True)


def provenance(offer: Offer) -> dict[str, Any]:
    """The whole recipe, what each task asks, the digest of how that becomes tokens, and what a server needs."""
    data = offer.data()
    return {**data, "prompt_digest": digest([PROMPT_VERSION, data["questions"]])}


def forms() -> list[str]:
    """All words for `--to`; which of them an engine can really give is seen when it is asked."""
    return [PLAIN, *WORDS, *(name for name in catalog.names("engine") if name not in WORDS.values())]


def _in_engine(offer: Offer, form: str) -> Offer:
    """The offer in the engine of that form; what was promised for another engine is promised no more."""
    name = WORDS.get(form, form)
    if form not in forms() and name not in catalog.names("engine"):
        raise StudyError(not_among("what can be exported", form, forms()))
    if offer.trial.engine.name == name:
        return offer
    trial = replace(offer.trial, engine=Choice("engine", name))
    return replace(offer, trial=trial, promise=replace(offer.promise, joules=None, lower=None, upper=None))


def _copy(artifact: Path, target: Path) -> None:
    """The saved model without what engines and the study's books have put beside it."""
    engines = [f"{name}-*" for name in catalog.names("engine")]
    left_behind = shutil.ignore_patterns(*engines, "costs.json", "reference-*.npz", ".*")
    shutil.copytree(artifact, target, ignore=left_behind, dirs_exist_ok=True)


def _as_saved(offer: Offer, target: Path, questions: Sequence[Question]) -> Check:
    """The copy gives the very answers of the original."""
    plain = catalog.build(Choice("engine", "transformers"))
    expected, got = _answers(plain, offer.artifact, questions), _answers(plain, target, questions)
    same = _same(got, expected)
    if same < len(questions):
        raise StoreError(f"{target}: the copy does not answer as the original does; the disk may be faulty.")
    return Check(len(questions), same)


def _converted(offer: Offer, target: Path, questions: Sequence[Question]) -> Check:
    """Let the engine convert the copy, take the original weights away, and see that it still answers the same.

    Its logits and choices must agree with the original's as far as a study asks of an engine.
    """
    name, engine = offer.trial.engine.name, catalog.build(offer.trial.engine)
    before = _answers(engine, offer.artifact, questions)
    _answers(engine, target, questions[:1])
    if not any(target.glob(f"{name}-*")):
        raise StudyError(f"export: engine {name} runs the saved model itself; use --to {PLAIN}.")
    for pattern in _ORIGINAL:
        for each in target.glob(pattern):
            shutil.rmtree(each) if each.is_dir() else each.unlink()
    with engine.open(target, 1) as session:
        after = list(session.answer(questions))
        if _same(after, before) < len(questions):
            raise StoreError(f"{target}: the exported form does not answer as engine {name} does in the study.")
        try:
            agreement.check(name, session, offer.artifact, {"export": questions})
        except RuntimeError as error:
            raise StoreError(f"{target}: {error}") from error
    plain = _answers(catalog.build(Choice("engine", "transformers")), offer.artifact, questions)
    alike = sum(mine.text == other.text for mine, other in zip(after, plain, strict=True))
    return Check(len(questions), alike)


def _answers(engine: Any, folder: Path, questions: Sequence[Question]) -> list[Answer]:
    with engine.open(folder, 1) as session:
        opened: Session = session
        return list(opened.answer(questions))


def _same(got: Sequence[Answer], expected: Sequence[Answer]) -> int:
    """How many have the same words, and scores that are as good as equal."""
    return sum(
        mine.text == right.text
        and all(abs(a - b) <= CLOSE * max(1.0, abs(b)) for a, b in zip(mine.scores, right.scores, strict=True))
        for mine, right in zip(got, expected, strict=True)
    )


def _contents(offer: Offer, form: str, target: Path) -> str:
    if form == PLAIN:
        return "In this folder: the model as Hugging Face files, which plain `from_pretrained` opens."
    [folder] = target.glob(f"{offer.trial.engine.name}-*")
    files = ", ".join(f"`{folder.name}/{each.name}`" for each in sorted(folder.iterdir()))
    return (
        f"In this folder: the model in the form of engine {offer.trial.engine} ({files}), and its tokenizer. "
        "`leanwatt serve` takes the folder as it is."
    )
