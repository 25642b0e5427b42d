"""Write the note that answers or closes a ticket.

Ranked by ROUGE-L against the note that people wrote. Notes that read alike can still name the wrong thing, so slots say
apart whether the right equipment, place and action are named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from leanwatt.data import Columns
from leanwatt.question import Answer, Example
from leanwatt.split import Item, items
from leanwatt.tasks._overlap import names, words
from leanwatt.tasks._written import Written, overlap


@final
@dataclass(frozen=True)
class Response(Written):
    """Ticket in, note out."""

    primary: ClassVar[str] = "rouge_l"

    instruction: str = "Write the note that closes this ticket."
    """What the model is told to do."""
    lead: str = "Resolution:"
    """What the answer follows on."""
    slots: Mapping[str, str] = field(default_factory=dict)
    """Facts that the note should name: slot name -> column with the true value; an empty cell is unknown."""

    @property
    def columns(self) -> Columns:
        """Which columns are read."""
        return Columns(self.texts, self.reference, tuple(self.slots.values()))

    def examples(self, fold: int) -> Sequence[Example]:
        """All examples of one fold."""
        return [
            Example(item.id, item.group, item.split, self.question(item), item.target, self._facts(item))
            for item in items(self.source, self.columns, fold)
        ]

    def row(self, example: Example, answer: Answer) -> Mapping[str, Any]:
        """One row.

        `hypothesis` and `reference` (corpus metrics are computed from them), `rouge_l`, `token_f1`, `slot_<name>`
        (1 named, 0 not, None where the true value is unknown) and their mean `slots`, `truncated`, `tokens_out`.
        """
        row = overlap(answer, example.target)
        if not self.slots:
            return row
        named = {slot: _named(row["hypothesis"], example.fields.get(slot, "")) for slot in self.slots}
        known = [one for one in named.values() if one is not None]
        mean = sum(known) / len(known) if known else None
        return {**row, **{f"slot_{slot}": one for slot, one in named.items()}, "slots": mean}

    def _facts(self, item: Item) -> dict[str, str]:
        return {slot: item.slots[column] for slot, column in self.slots.items()}


def _named(text: str, fact: str) -> int | None:
    return int(names(text, fact)) if words(fact) else None
