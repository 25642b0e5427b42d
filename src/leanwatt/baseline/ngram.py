"""Predict the next byte from the last few: what a language model of texts must beat.

Bytes that followed the same bytes in training, shorter contexts filling in for longer ones (Witten and Bell, 1991,
doi 10.1109/18.87000): a compressor of the PPM kind, without a tokenizer and without a multiplication of matrices.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, final

from annotated_types import Ge, Le

from leanwatt.baseline._sessions import Lookup, body
from leanwatt.contracts import Baseline, Session
from leanwatt.question import Answer, Example, Likelihood

END = 256
"""The symbol after the last byte of a text."""
SYMBOLS = 257

Counts = dict[tuple[int, ...], dict[int, int]]
"""Context -> symbol -> how often it followed."""


@final
@dataclass(frozen=True)
class Ngram(Baseline):
    """Counts of bytes after each context of up to `order` bytes."""

    order: Annotated[int, Ge(1), Le(12)] = 5
    """Longest context in bytes."""

    def fit(self, examples: Sequence[Example]) -> Session | None:
        """Count the training texts; None for tasks that ask for an answer."""
        if not examples or not all(isinstance(example.question, Likelihood) for example in examples):
            return None
        counts: Counts = {}
        for example in examples:
            symbols = _symbols(body(example.question))
            for place, symbol in enumerate(symbols):
                for size in range(min(self.order, place) + 1):
                    followers = counts.setdefault(symbols[place - size : place], {})
                    followers[symbol] = followers.get(symbol, 0) + 1
        return Lookup(lambda questions: [_answer(counts, self.order, body(question)) for question in questions])


def _symbols(text: str) -> tuple[int, ...]:
    return (*text.encode(), END)


def _answer(counts: Counts, order: int, text: str) -> Answer:
    symbols = _symbols(text)
    logs = [
        math.log(_chance(counts, symbols[max(0, place - order) : place], symbol))
        for place, symbol in enumerate(symbols)
    ]
    return Answer(None, (math.fsum(logs),), tokens_in=len(symbols))


def _chance(counts: Counts, context: tuple[int, ...], symbol: int) -> float:
    """From the empty context up: each longer one that training has seen corrects the shorter ones."""
    chance = 1 / SYMBOLS
    for start in range(len(context), -1, -1):
        followers = counts.get(context[start:])
        if followers is None:
            break
        total, kinds = sum(followers.values()), len(followers)
        chance = (followers.get(symbol, 0) + kinds * chance) / (total + kinds)
    return chance
