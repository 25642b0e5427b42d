"""What tasks on the rows of a file share: where the rows come from, and one graded row per example."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from leanwatt.contracts import Task
from leanwatt.data import Columns
from leanwatt.question import Answer, Example
from leanwatt.source import Source


@dataclass(frozen=True)
class Rows(Task):
    """A task whose examples are rows: settings that all of them have."""

    data: str | Mapping[str, Any]
    """A file, or a mapping with `path` and how it is split: see `leanwatt.source.Source`."""
    text: str | tuple[str, ...]
    """Column with what the model reads, or a list of columns; only what is known when it is asked."""

    @property
    @abstractmethod
    def columns(self) -> Columns:
        """Which columns are read."""

    @abstractmethod
    def row(self, example: Example, answer: Answer) -> Mapping[str, Any]:
        """One graded row: the columns that metrics.py knows."""

    @final
    @property
    def source(self) -> Source:
        """Where the rows come from. Raises StudyError for settings that contradict each other."""
        return Source.parse(self.data)

    @final
    @property
    def place(self) -> str:
        """Where the settings stand in the study: `tasks.root_cause`."""
        return f"tasks.{type(self).__module__.rpartition('.')[2]}"

    @final
    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of the text."""
        return (self.text,) if isinstance(self.text, str) else tuple(self.text)

    @final
    def grade(self, examples: Sequence[Example], answers: Sequence[Answer]) -> Sequence[Mapping[str, Any]]:
        """One row per example; see `row`."""
        return [self.row(example, answer) for example, answer in zip(examples, answers, strict=True)]


def effort(answer: Answer) -> dict[str, Any]:
    """Columns of every row: was the text cut, and how many tokens came out."""
    return {"truncated": answer.truncated, "tokens_out": answer.tokens_out}
