"""A tiny model as an exported folder, and an engine that repeats what it is asked: what tests of the server serve."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leanwatt.batching import Heard
from leanwatt.feedback import Columns
from leanwatt.form import Form
from leanwatt.measurement import Energy, Provenance
from leanwatt.offer import Offer
from leanwatt.promise import Promise
from leanwatt.question import Answer, Generate, Prompt, Question, Score
from leanwatt.recipe import Choice, Recipe, Trial, Variant

CAUSES = ("mains failure", "fibre cut", "router down")
FORM = Form(
    {
        "root_cause": Score(Prompt("Name the root cause of this fault.", "", "Root cause:"), CAUSES),
        "response": Generate(Prompt("Write the note that closes this ticket.", "", "Resolution:"), limit=8),
    }
)
PROMISE = Promise(2.0, 1.0, 4.0, "estimated", "estimate", "package", "m1", batch=4)


def offer_of(artifact: Path, **changes: Any) -> Offer:
    trial = Trial(Variant(Recipe("tiny")), Choice("engine", "transformers"), batch=4)
    columns = Columns("description", "cause", "resolution", others=("action",))
    return replace(Offer("tiny", trial, artifact, FORM, Choice("meter", "estimate"), PROMISE, columns), **changes)


def folder_of(model: Path, target: Path) -> Path:
    """As `leanwatt export` writes it."""
    shutil.copytree(model, target)
    (target / "provenance.json").write_text(json.dumps(offer_of(target).data()), encoding="utf-8")
    return target


@dataclass
class Echo:
    """A session that answers with the ticket itself, and can be made slow or faulty."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    poison: str = "poison"
    sizes: list[int] = field(default_factory=list)

    def answer(self, questions: Sequence[Question]) -> Sequence[Answer]:
        return self.stream(questions, {})

    def stream(self, questions: Sequence[Question], heard: Mapping[int, Heard]) -> Sequence[Answer]:
        self.sizes.append(len(questions))
        time.sleep(self.seconds)
        found = []
        for place, question in enumerate(questions):
            text = getattr(question, "prompt").body  # noqa: B009
            if self.poison in text:
                raise ZeroDivisionError("secret words of the engine")
            if place in heard:
                for size in range(1, len(text) + 1):
                    heard[place](text[:size])
            scores = tuple(-float(i) for i in range(len(question.options))) if isinstance(question, Score) else ()
            found.append(Answer(text, scores, tokens_in=3, tokens_out=2))
        return found


class Even:
    """A window that gives every answer one joule."""

    def add(self, *answers: Answer, seconds: float) -> None:
        pass

    def shares(self, *parts: Sequence[Answer]) -> Sequence[Energy]:
        return [
            Energy(len(part), len(part) / 2, len(part) * 2, Provenance.ESTIMATED, source="estimate", scope="package")
            for part in parts
        ]
