"""How well a model predicts texts of a domain: what compression loses where there is nothing to answer.

Ranked by the mean probability of a byte, exp(-nats / bytes), the geometric mean over all bytes: from 0 to 1, the same
scale for every tokenizer, and higher is better. It is 2 ** -bits_per_byte, and bits_per_byte stands beside it.
Perplexity per token is not given: it cannot be compared between tokenizers. A text's end counts as one byte. Texts
longer than the context are read in windows, each half a context further (Radford et al., 2019, have such windows).
A drop that no user would notice can be seen here first; it says nothing of whether answers are right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from leanwatt.data import Columns
from leanwatt.question import Answer, Example, Likelihood
from leanwatt.split import items
from leanwatt.tasks._rows import Rows, effort


@final
@dataclass(frozen=True)
class Perplexity(Rows):
    """Text in, its probability out."""

    primary: ClassVar[str] = "byte_probability"

    def __post_init__(self) -> None:
        """Check the settings; raises StudyError."""
        _ = self.source

    @property
    def columns(self) -> Columns:
        """Which columns are read."""
        return Columns(self.texts, None)

    def examples(self, fold: int) -> Sequence[Example]:
        """All examples of one fold."""
        return [
            Example(item.id, item.group, item.split, Likelihood(item.text), "")
            for item in items(self.source, self.columns, fold)
        ]

    def row(self, example: Example, answer: Answer) -> Mapping[str, Any]:
        """One row: `nats` (minus the log-probability) and `bytes`, from which metrics.py has its sums; the effort."""
        question = example.question
        if not isinstance(question, Likelihood) or len(answer.scores) != 1:
            raise ValueError(f"Example {example.id}: one score of one text is needed; got {len(answer.scores)} scores.")
        return {"nats": -answer.scores[0], "bytes": question.bytes, **effort(answer)}
