"""Name the root cause of a ticket, out of a closed set of causes.

The model scores every cause after the ticket, or writes one (`mode: generate`). Ranked by macro-F1, in which a rare
cause counts as much as a frequent one.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

from leanwatt.contracts import Task
from leanwatt.data import Columns
from leanwatt.errors import DataError, StudyError
from leanwatt.question import Answer, Example, Generate, Prompt, Question, Score
from leanwatt.source import Source
from leanwatt.split import Item, items
from leanwatt.tasks._overlap import matched


@final
@dataclass(frozen=True)
class RootCause(Task):
    """Text in, one of the known causes out."""

    primary: ClassVar[str] = "macro_f1"

    data: str | Mapping[str, Any]
    """A file, or a mapping with `path` and how it is split: see `leanwatt.source.Source`."""
    text: str | tuple[str, ...]
    """Column with the ticket, or a list of columns; only what is known when the ticket is opened."""
    label: str
    """Column with the cause."""
    instruction: str = "Name the root cause of this fault."
    """What the model is told to do."""
    lead: str = "Root cause:"
    """What the answer follows on."""
    mode: Literal["score", "generate"] = "score"
    """score: the most likely cause, so the answer is always a known one. generate: what the model writes."""
    options: tuple[str, ...] | None = None
    """The causes to choose from; by default those of the training split, sorted."""
    limit: int = 16
    """Most tokens that `generate` writes."""

    def __post_init__(self) -> None:
        """Check the settings; raises StudyError."""
        Source.parse(self.data)
        if self.limit < 1:
            raise StudyError(f"tasks.root_cause.limit: got {self.limit}; at least 1 token is needed.")
        if self.options is not None and len(set(self.options)) != len(self.options):
            raise StudyError("tasks.root_cause.options: an option stands twice; leave one out.")
        if self.options is not None and len(self.options) < 2:
            raise StudyError(f"tasks.root_cause.options: got {list(self.options)}; at least two are needed.")

    @property
    def source(self) -> Source:
        """Where the rows come from."""
        return Source.parse(self.data)

    @property
    def columns(self) -> Columns:
        """Which columns are read."""
        text = (self.text,) if isinstance(self.text, str) else tuple(self.text)
        return Columns(text, self.label, closed=True)

    def examples(self, fold: int) -> Sequence[Example]:
        """All examples of one fold. A held-out row whose cause is no option stays, and every answer to it is wrong."""
        found = items(self.source, self.columns, fold)
        options = self._options(found)
        return [
            Example(item.id, item.group, item.split, self._question(item, options), item.target, self._fields(options))
            for item in found
        ]

    def grade(self, examples: Sequence[Example], answers: Sequence[Answer]) -> Sequence[Mapping[str, Any]]:
        """One row per example.

        `target`, `chosen` (empty where an answer names no option: `unmatched`), `correct`, `confidence` (softmax over
        the options) and `p_target`, both None in generate mode, `truncated`, `tokens_out`.
        """
        return [self._row(example, answer) for example, answer in zip(examples, answers, strict=True)]

    def _options(self, found: Sequence[Item]) -> tuple[str, ...]:
        trained = sorted({item.target for item in found if item.split == "train"})
        if self.options is None:
            if len(trained) < 2:
                raise DataError(f"{self.source.path}: the training split has one '{self.label}' only: {trained}.")
            return tuple(trained)
        if missing := [name for name in trained if name not in self.options]:
            raise DataError(
                f"{self.source.path}: '{self.label}' is {missing[0]!r} in a training row, and not among `options`; "
                "add it, or leave `options` out to use the classes of the training split."
            )
        return self.options

    def _question(self, item: Item, options: tuple[str, ...]) -> Question:
        prompt = Prompt(self.instruction, item.text, self.lead)
        return Score(prompt, options) if self.mode == "score" else Generate(prompt, self.limit, ("\n",))

    def _fields(self, options: tuple[str, ...]) -> dict[str, str]:
        return {} if self.mode == "score" else {"options": json.dumps(options)}

    def _row(self, example: Example, answer: Answer) -> dict[str, Any]:
        chosen, chances = _chosen(example, answer)
        return {
            "target": example.target,
            "chosen": chosen or "",
            "correct": chosen == example.target,
            "unmatched": chosen is None,
            "confidence": max(chances.values()) if chances else None,
            "p_target": chances.get(example.target, 0.0) if chances else None,
            "truncated": answer.truncated,
            "tokens_out": answer.tokens_out,
        }


def _chosen(example: Example, answer: Answer) -> tuple[str | None, dict[str, float]]:
    """The option that was answered, and the probability of each where the model scored them."""
    if not isinstance(example.question, Score):
        return matched(answer.text or "", json.loads(example.fields["options"])), {}
    options = example.question.options
    if len(answer.scores) != len(options):
        raise ValueError(f"{len(answer.scores)} scores came back for {len(options)} options of example {example.id}.")
    highest = max(answer.scores)
    weights = [math.exp(score - highest) for score in answer.scores]
    chances = {option: weight / sum(weights) for option, weight in zip(options, weights, strict=True)}
    return options[answer.scores.index(highest)], chances
