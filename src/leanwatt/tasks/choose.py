"""Choose among options that differ from question to question: multiple choice.

The model scores the text of every option after the question. Where several options are right, choosing any of them is
right. Ranked by accuracy; `chance` beside it is what guessing gets. Tests written by people or models often give the
right option away by its place or length: the baseline `cue` finds out, and `retrieval` answers with a search box.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final

from leanwatt.data import Columns
from leanwatt.errors import DataError
from leanwatt.question import Answer, Example, Prompt, Score
from leanwatt.split import Item, items
from leanwatt.tasks._rows import Rows, effort
from leanwatt.tasks._scoring import chances, sureness

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@final
@dataclass(frozen=True)
class Choose(Rows):
    """Question and options in, one option out."""

    primary: ClassVar[str] = "accuracy"

    options: str | tuple[str, ...]
    """Columns with one option each, an empty cell being none; or one column that holds a JSON list."""
    answer: str
    """Column with the right option; a JSON list where several are right."""
    answer_as: Literal["text", "number", "letter"] = "text"
    """How `answer` names an option: its words, its number from 1, or its letter from A."""
    listed: bool = False
    """Show the options in the prompt as well, one a line: `A. ...`. For models that know such tests."""
    per_byte: bool = False
    """Divide the log-probability of each option by its UTF-8 bytes (`acc_norm` of the evaluation harness): for options
    of unlike length, of which the long ones are otherwise the less likely, whatever they say."""
    instruction: str = "Choose the right answer."
    """What the model is told to do."""
    lead: str = "Answer:"
    """What the answer follows on."""

    def __post_init__(self) -> None:
        """Check the settings; raises StudyError."""
        _ = self.source

    @property
    def columns(self) -> Columns:
        """Which columns are read."""
        options = (self.options,) if isinstance(self.options, str) else self.options
        return Columns(self.texts, self.answer, tuple(options), right_or_wrong=True)

    def examples(self, fold: int) -> Sequence[Example]:
        """All examples of one fold; training learns the first right option. Raises DataError for a row without one."""
        return [self._example(item) for item in items(self.source, self.columns, fold)]

    def row(self, example: Example, answer: Answer) -> Mapping[str, Any]:
        """One row: `correct`, `confidence`, `p_target` (of all right options together), `chance`, and the effort."""
        question, right = example.question, set(json.loads(example.fields["right"]))
        if not isinstance(question, Score):
            raise TypeError(f"Example {example.id} has no options to choose from.")
        shares = chances(example, question, self._weighted(question, answer))
        chosen = question.options[shares.index(max(shares))]
        good = [option in right for option in question.options]
        return {
            **sureness(
                correct=chosen in right,
                confidence=max(shares),
                p_target=sum(share for share, is_right in zip(shares, good, strict=True) if is_right),
            ),
            "chance": sum(good) / len(good),
            **effort(answer),
        }

    def _example(self, item: Item) -> Example:
        options = self._options(item)
        right = [self._meant(item, options, name) for name in _several(item.target)]
        question = Score(Prompt(self.instruction, self._body(item, options), self.lead), options)
        # How it is graded belongs to an example, so that a change is graded anew.
        fields = {"right": json.dumps(right), "scored": "per byte" if self.per_byte else "whole"}
        return Example(item.id, item.group, item.split, question, right[0], fields)

    def _weighted(self, question: Score, answer: Answer) -> Answer:
        if not self.per_byte:
            return answer
        sizes = [len(option.encode()) for option in question.options]
        return replace(answer, scores=tuple(score / size for score, size in zip(answer.scores, sizes, strict=False)))

    def _options(self, item: Item) -> tuple[str, ...]:
        if isinstance(self.options, str):
            found = _several(item.slots[self.options])
        else:
            found = [item.slots[name] for name in self.options if item.slots[name]]
        if len(found) < 2:
            raise DataError(f"{self.source.path}, row {item.id}: has {len(found)} options; at least two are needed.")
        return tuple(found)

    def _meant(self, item: Item, options: tuple[str, ...], name: str) -> str:
        """The option that the answer names."""
        named = {
            "text": dict(zip(options, options, strict=True)),
            "number": {str(number): option for number, option in enumerate(options, start=1)},
            "letter": dict(zip(LETTERS, options, strict=False)),
        }[self.answer_as]
        if name not in named:
            raise DataError(
                f"{self.source.path}, row {item.id}: '{self.answer}' is {name!r}, and the options are "
                f"{list(named)}. Mend the row, or say with `answer_as` whether it is a text, a number or a letter."
            )
        return named[name]

    def _body(self, item: Item, options: tuple[str, ...]) -> str:
        if not self.listed:
            return item.text
        return "\n".join([item.text, *(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))])


def _several(cell: str) -> list[str]:
    """A JSON list as texts; anything else is one text."""
    if not cell.startswith("["):
        return [cell]
    try:
        found = json.loads(cell)
    except json.JSONDecodeError:
        return [cell]
    return [str(each) for each in found]
