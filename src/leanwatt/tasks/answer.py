"""Answer a question in free words, from a text or from what the model knows.

Ranked by token F1 against the right answer, as SQuAD is (Rajpurkar et al., 2016, arXiv:1606.05250; articles kept):
the words count, not their order. `exact` is the share of answers that are the right one word for word. For a question
with options use `choose`, whose answers cannot be half right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from leanwatt.data import Columns
from leanwatt.question import Answer as Given
from leanwatt.question import Example
from leanwatt.split import items
from leanwatt.tasks._overlap import words
from leanwatt.tasks._written import Written, overlap


@final
@dataclass(frozen=True)
class Answer(Written):
    """Question in, answer in words out."""

    primary: ClassVar[str] = "token_f1"

    instruction: str = "Answer the question."
    """What the model is told to do."""

    @property
    def columns(self) -> Columns:
        """Which columns are read."""
        return Columns(self.texts, self.reference)

    def examples(self, fold: int) -> Sequence[Example]:
        """All examples of one fold."""
        return [
            Example(item.id, item.group, item.split, self.question(item), item.target)
            for item in items(self.source, self.columns, fold)
        ]

    def row(self, example: Example, answer: Given) -> Mapping[str, Any]:
        """One row: as of `response` without slots, and `exact`."""
        row = overlap(answer, example.target)
        return {**row, "exact": int(words(row["hypothesis"]) == words(example.target))}
