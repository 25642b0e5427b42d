"""What a study asks of a new ticket: its questions without their tickets, from a study or an exported folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from leanwatt import catalog
from leanwatt.errors import StudyError
from leanwatt.question import Answer, Generate, Prompt, Question, Score
from leanwatt.study import Study


@dataclass(frozen=True)
class Form:
    """The question of each task, by the task's name."""

    questions: Mapping[str, Score | Generate]

    @classmethod
    def of(cls, study: Study, fold: int) -> Form:
        """The study's questions, options included. Raises StudyError for a task that asks nothing of a ticket."""
        return cls({choice.name: _blank(choice.name, catalog.build(choice), fold) for choice in study.tasks})

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Form:
        """The inverse of `data`. Raises StudyError for anything else."""
        try:
            return cls({task: _question(dict(about)) for task, about in data.items()})
        except (KeyError, TypeError, AttributeError) as error:
            raise StudyError(
                "The folder's provenance.json does not hold the questions of the study; export it again."
            ) from error

    def data(self) -> dict[str, Any]:
        """As JSON: `kind`, the prompt's words, options or limits."""
        return {
            task: {"kind": "score" if isinstance(asked, Score) else "generate", **asdict(asked)}
            for task, asked in self.questions.items()
        }

    def about(self, ticket: str) -> dict[str, Question]:
        """The questions, with this ticket. Raises StudyError for an empty one."""
        if not ticket.strip():
            raise StudyError("The ticket is empty. Give its text, or - to read it from standard input.")
        return {
            task: replace(asked, prompt=replace(asked.prompt, body=ticket.strip()))
            for task, asked in self.questions.items()
        }

    @property
    def causes(self) -> tuple[str, ...]:
        """The causes to choose from; empty where no task chooses."""
        return next((asked.options for asked in self.questions.values() if isinstance(asked, Score)), ())

    @property
    def writes(self) -> bool:
        """Whether a response is drafted."""
        return any(isinstance(asked, Generate) for asked in self.questions.values())


def _blank(task: str, built: Any, fold: int) -> Score | Generate:
    examples = built.examples(fold)
    question = examples[0].question
    if len({e.question.options for e in examples if isinstance(e.question, Score)}) > 1:
        raise StudyError(f"tasks.{task}: has other options for every question: a ticket alone cannot be answered.")
    if not isinstance(question, Score | Generate):
        raise StudyError(f"tasks.{task}: asks nothing of a ticket, so it cannot be served.")
    return replace(question, prompt=replace(question.prompt, body=""))


def _question(about: dict[str, Any]) -> Score | Generate:
    prompt = Prompt(**about["prompt"])
    if about["kind"] == "score":
        return Score(prompt, tuple(about["options"]))
    return Generate(prompt, int(about["limit"]), tuple(about["stop"]))


def likely(question: Question, found: Answer) -> tuple[tuple[str, float], ...]:
    """Options with their share of the probability, the likeliest first; empty where nothing was scored."""
    if not isinstance(question, Score):
        return ()
    top = max(found.scores)
    weights = {o: math.exp(s - top) for o, s in zip(question.options, found.scores, strict=True)}
    whole = sum(weights.values())
    return tuple((option, weight / whole) for option, weight in sorted(weights.items(), key=lambda pair: -pair[1]))


def read_provenance(folder: Path) -> dict[str, Any]:
    """`provenance.json` of an exported folder. Raises StudyError where it is none."""
    try:
        found = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(f"{folder}: is no folder that `leanwatt export` wrote (no provenance.json).") from error
    if not isinstance(found, dict):
        raise StudyError(f"{folder}: its provenance.json is damaged; export it again.")
    return found
