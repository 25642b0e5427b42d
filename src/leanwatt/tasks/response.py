"""Write the note that answers or closes a ticket.

Ranked by ROUGE-L against the note that people wrote. Notes that read alike can still name the wrong thing, so slots say
apart whether the right equipment, place and action are named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from leanwatt.contracts import Task
from leanwatt.data import Columns
from leanwatt.errors import StudyError
from leanwatt.question import Answer, Example, Generate, Prompt
from leanwatt.source import Source
from leanwatt.split import Item, items
from leanwatt.tasks._overlap import names, rouge_l, token_f1, words


@final
@dataclass(frozen=True)
class Response(Task):
    """Text in, text out."""

    primary: ClassVar[str] = "rouge_l"

    data: str | Mapping[str, Any]
    """A file, or a mapping with `path` and how it is split: see `leanwatt.source.Source`."""
    text: str | tuple[str, ...]
    """Column with the ticket, or a list of columns; only what is known when the ticket is opened."""
    reference: str
    """Column with the note that people wrote."""
    slots: Mapping[str, str] = field(default_factory=dict)
    """Facts that the note should name: slot name -> column with the true value; an empty cell is unknown."""
    instruction: str = "Write the note that closes this ticket."
    """What the model is told to do."""
    lead: str = "Resolution:"
    """What the answer follows on."""
    limit: int = 64
    """Most tokens of an answer."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, besides the end of text."""

    def __post_init__(self) -> None:
        """Check the settings; raises StudyError."""
        Source.parse(self.data)
        if self.limit < 1:
            raise StudyError(f"tasks.response.limit: got {self.limit}; at least 1 token is needed.")

    @property
    def source(self) -> Source:
        """Where the rows come from."""
        return Source.parse(self.data)

    @property
    def columns(self) -> Columns:
        """Which columns are read."""
        text = (self.text,) if isinstance(self.text, str) else tuple(self.text)
        return Columns(text, self.reference, tuple(self.slots.values()))

    def examples(self, fold: int) -> Sequence[Example]:
        """All examples of one fold."""
        return [
            Example(item.id, item.group, item.split, self._question(item), item.target, self._fields(item))
            for item in items(self.source, self.columns, fold)
        ]

    def grade(self, examples: Sequence[Example], answers: Sequence[Answer]) -> Sequence[Mapping[str, Any]]:
        """One row per example.

        `hypothesis` and `reference` (corpus metrics are computed from them), `rouge_l`, `token_f1`, `slot_<name>`
        (1 named, 0 not, None where the true value is unknown) and their mean `slots`, `truncated`, `tokens_out`.
        """
        return [self._row(example, answer) for example, answer in zip(examples, answers, strict=True)]

    def _question(self, item: Item) -> Generate:
        return Generate(Prompt(self.instruction, item.text, self.lead), self.limit, self.stop)

    def _fields(self, item: Item) -> dict[str, str]:
        return {slot: item.slots[column] for slot, column in self.slots.items()}

    def _row(self, example: Example, answer: Answer) -> dict[str, Any]:
        text = (answer.text or "").strip()
        named = {slot: _named(text, example.fields.get(slot, "")) for slot in self.slots}
        known = [one for one in named.values() if one is not None]
        row = {
            "hypothesis": text,
            "reference": example.target,
            "rouge_l": rouge_l(text, example.target),
            "token_f1": token_f1(text, example.target),
            **{f"slot_{slot}": one for slot, one in named.items()},
            "truncated": answer.truncated,
            "tokens_out": answer.tokens_out,
        }
        return {**row, "slots": sum(known) / len(known) if known else None} if self.slots else row


def _named(text: str, fact: str) -> int | None:
    return int(names(text, fact)) if words(fact) else None
