"""Examples in tokens, to learn from or to calibrate on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leanwatt.prompt import Encoder, windows
from leanwatt.question import Example, Likelihood, Score

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Lesson:
    """Tokens to learn from, and where the loss begins."""

    ids: tuple[int, ...]
    answer_from: int
    """Tokens before this place are the prompt."""


def lessons(examples: Sequence[Example], encoder: Encoder) -> list[Lesson]:
    """Prompt and right answer of each example in tokens; of a text without a question, the text in windows."""
    found = []
    for example in examples:
        question = example.question
        if isinstance(question, Likelihood):  # The whole text is to be learned.
            parts = windows(encoder.document(question.text), encoder.context)
            found += [Lesson(part.ids, len(part.ids) - part.fresh) for part in parts]
            continue
        answer = encoder.answer(example.target)
        if not isinstance(question, Score):
            answer = (*answer[: question.limit - 1], encoder.end) if len(answer) > question.limit else answer
        prompt = encoder.prompt(question.prompt, room=len(answer)).ids
        found.append(Lesson(prompt + answer, len(prompt)))
    return found


def tensors(batch: Sequence[Lesson], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, which are real (1 or 0), which belong to an answer: each (lessons, longest), padded on the right."""
    import torch

    width = max(len(lesson.ids) for lesson in batch)
    ids = torch.full((len(batch), width), pad)
    seen = torch.zeros((len(batch), width), dtype=torch.long)
    answers = torch.zeros((len(batch), width), dtype=torch.bool)
    for row, lesson in enumerate(batch):
        size = len(lesson.ids)
        ids[row, :size] = torch.tensor(lesson.ids)
        seen[row, :size] = 1
        answers[row, lesson.answer_from : size] = True
    return ids, seen, answers
