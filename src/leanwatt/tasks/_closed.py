"""What tasks with one closed set of answers share: the options, the question, and the graded row."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, final

from annotated_types import Ge

from leanwatt.data import Columns
from leanwatt.errors import DataError, StudyError
from leanwatt.question import Answer, Example, Generate, Prompt, Question, Score
from leanwatt.split import Item, items
from leanwatt.tasks._overlap import matched
from leanwatt.tasks._rows import Rows, effort
from leanwatt.tasks._scoring import chances, sureness


@dataclass(frozen=True)
class Closed(Rows):
    """Text in, one of the known labels out. A task sets the words (instruction and lead), and nothing else."""

    primary: ClassVar[str] = "macro_f1"

    label: str
    """Column with the right answer."""
    instruction: str = "Choose the class of this text."
    """What the model is told to do."""
    lead: str = "Class:"
    """What the answer follows on."""
    mode: Literal["score", "generate"] = "score"
    """score: the most likely label, so the answer is always a known one. generate: what the model writes."""
    options: tuple[str, ...] | None = None
    """The labels to choose from; by default those of the training split, sorted."""
    limit: Annotated[int, Ge(1)] = 16
    """Most tokens that `generate` writes."""

    @final
    def __post_init__(self) -> None:
        """Check the settings; raises StudyError."""
        _ = self.source
        if self.options is not None and len(set(self.options)) != len(self.options):
            raise StudyError(f"{self.place}.options: an option stands twice; leave one out.")
        if self.options is not None and len(self.options) < 2:
            raise StudyError(f"{self.place}.options: got {list(self.options)}; at least two are needed.")

    @final
    @property
    def columns(self) -> Columns:
        """Which columns are read."""
        return Columns(self.texts, self.label, closed=True)

    @final
    def examples(self, fold: int) -> Sequence[Example]:
        """All examples of one fold. A held-out row whose label is no option stays, and every answer to it is wrong."""
        found = items(self.source, self.columns, fold)
        options = self._options(found)
        fields = {} if self.mode == "score" else {"options": json.dumps(options)}
        return [
            Example(item.id, item.group, item.split, self._question(item, options), item.target, fields)
            for item in found
        ]

    @final
    def row(self, example: Example, answer: Answer) -> Mapping[str, Any]:
        """One row.

        `target`, `chosen` (empty where an answer names no option: `unmatched`), `correct`, `confidence` (softmax over
        the options) and `p_target`, both None in generate mode, `truncated`, `tokens_out`.
        """
        chosen, shares = _chosen(example, answer)
        return {
            "target": example.target,
            "chosen": chosen or "",
            "unmatched": chosen is None,
            **sureness(
                correct=chosen == example.target,
                confidence=max(shares.values()) if shares else None,
                p_target=shares.get(example.target, 0.0) if shares else None,
            ),
            **effort(answer),
        }

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


def _chosen(example: Example, answer: Answer) -> tuple[str | None, dict[str, float]]:
    """The option that was answered, and the probability of each where the model scored them."""
    question = example.question
    if not isinstance(question, Score):
        return matched(answer.text or "", json.loads(example.fields["options"])), {}
    shares = dict(zip(question.options, chances(example, question, answer), strict=True))
    return max(shares, key=lambda option: shares[option]), shares
