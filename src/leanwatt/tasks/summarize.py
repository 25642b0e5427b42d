"""Say in few words what a text says.

Ranked by ROUGE-L; where people wrote several summaries of one text, each figure is that of the nearest one, as in
SciTLDR (Cachola et al., 2020, arXiv:2004.15011). `copied` is the share of the summary's words that stand in the text:
near 1, the model copies. chrF and BLEU compare with the first summary only. Put the baseline `sentence` beside it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from leanwatt.data import Columns
from leanwatt.question import Answer, Example
from leanwatt.split import Item, items
from leanwatt.tasks._overlap import rouge_l, rouge_n, token_f1, words
from leanwatt.tasks._written import Written, overlap


@final
@dataclass(frozen=True)
class Summarize(Written):
    """Text in, summary out."""

    primary: ClassVar[str] = "rouge_l"

    instruction: str = "Summarize this text in one sentence."
    """What the model is told to do."""
    lead: str = "Summary:"
    """What the answer follows on."""
    also: tuple[str, ...] = ()
    """Columns with further summaries of the same text; an empty cell is none. They grade, and do not train."""

    @property
    def columns(self) -> Columns:
        """Which columns are read."""
        return Columns(self.texts, self.reference, self.also)

    def examples(self, fold: int) -> Sequence[Example]:
        """All examples of one fold."""
        return [
            Example(item.id, item.group, item.split, self.question(item), item.target, self._others(item))
            for item in items(self.source, self.columns, fold)
        ]

    def row(self, example: Example, answer: Answer) -> Mapping[str, Any]:
        """One row: `hypothesis`, `reference`, `token_f1` (ROUGE-1), `rouge_2`, `rouge_l`, `copied`, the effort."""
        row = overlap(answer, example.target)
        text = row["hypothesis"]
        all_of_them = [example.target, *json.loads(example.fields["also"])]
        return {
            **row,
            "rouge_2": max(rouge_n(text, each, 2) for each in all_of_them),
            "rouge_l": max(rouge_l(text, each) for each in all_of_them),
            "token_f1": max(token_f1(text, each) for each in all_of_them),
            "copied": _copied(text, example.fields["text"]),
        }

    def _others(self, item: Item) -> dict[str, str]:
        return {"text": item.text, "also": json.dumps([item.slots[name] for name in self.also if item.slots[name]])}


def _copied(summary: str, text: str) -> float | None:
    """Share of the summary's words that the text holds; None for an empty summary."""
    written, there = words(summary), set(words(text))
    return sum(word in there for word in written) / len(written) if written else None
