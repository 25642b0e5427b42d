"""What fitted baselines share: the text of a question, and answers from probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from leanwatt.question import Answer, Example, Generate, Likelihood, Question, Score

SMALLEST = 1e-9
"""Probability of an option that was never seen in training, so that its logarithm exists."""


@dataclass(frozen=True)
class Lookup:
    """A session that answers all questions with one function."""

    reply: Callable[[Sequence[Question]], Sequence[Answer]]
    facts: Mapping[str, Any] = field(default_factory=lambda: {"engine": "baseline", "kernel": "classical"})

    def answer(self, questions: Sequence[Question]) -> Sequence[Answer]:
        """One answer per question, in order."""
        return self.reply(questions)


def is_closed(examples: Sequence[Example]) -> bool:
    """The task is answered by one of a closed set, the same for all questions: options to score, or to write out."""
    return bool(examples) and (len(_sets_of_options(examples)) == 1 or all("options" in e.fields for e in examples))


def is_choice(examples: Sequence[Example]) -> bool:
    """The task is answered by one of several options that differ from question to question."""
    return len(_sets_of_options(examples)) > 1


def _sets_of_options(examples: Sequence[Example]) -> set[tuple[str, ...]]:
    """Empty unless every question has options to score."""
    if not all(isinstance(example.question, Score) for example in examples):
        return set()
    return {options_of(example.question) for example in examples}


def options_of(question: Question) -> tuple[str, ...]:
    """The options to score; none for a question of another kind."""
    return question.options if isinstance(question, Score) else ()


def is_written(examples: Sequence[Example]) -> bool:
    """The task is answered by a text of its own."""
    return bool(examples) and not is_closed(examples) and isinstance(examples[0].question, Generate)


def right_options(example: Example) -> Sequence[str]:
    """All options that are right: the target alone unless the task names several."""
    found: Sequence[str] = json.loads(example.fields["right"]) if "right" in example.fields else [example.target]
    return found


def body(question: Question) -> str:
    """The ticket's text."""
    return question.text if isinstance(question, Likelihood) else question.prompt.body


def from_probabilities(question: Question, shares: Mapping[str, float]) -> Answer:
    """An answer whose scores are log-probabilities of the question's options."""
    if not isinstance(question, Score):
        return Answer(max(shares, key=lambda text: shares[text]))
    scores = tuple(math.log(max(shares.get(option, 0.0), SMALLEST)) for option in question.options)
    return Answer(question.options[scores.index(max(scores))], scores)
