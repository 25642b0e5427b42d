"""The training loop: what every fine-tuning and the starter's pre-training share.

Loss on the answer (in pre-training a little on the prompt too), batches of like length, AdamW with warm-up and a linear
cool-down, the best state by validation loss kept, early stop, masks of pruning kept.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leanwatt.errors import RefusedError
from leanwatt.model import Model, keep_zeros
from leanwatt.prompt import Encoder, windows
from leanwatt.question import Example, Likelihood, Score

if TYPE_CHECKING:
    import torch


MOST_WARM_UP_STEPS = 50


@dataclass(frozen=True)
class Lesson:
    """Tokens to learn from, and where the loss begins."""

    ids: tuple[int, ...]
    answer_from: int
    """Tokens before this place are the prompt."""


@dataclass(frozen=True)
class Schedule:
    """How to train."""

    learning_rate: float
    epochs: float
    batch: int
    """Lessons per optimizer step."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises, up to 50."""
    cooldown: float = 0.4
    """Share of the steps over which it falls."""
    weight_decay: float = 0.1
    checks: int = 4
    """Looks at the validation loss, evenly spread."""
    patience: int = 2
    """Looks without an improvement before training stops."""
    max_steps: int | None = None
    prompt_weight: float = 0.0
    """What a prompt's token counts in the loss, beside 1 for an answer's: above 0 for pre-training."""
    precision: str = "fp32"
    """`bf16` multiplies in bfloat16 (autocast) and keeps the weights in fp32."""


@dataclass(frozen=True)
class Outcome:
    """What training came to."""

    steps: int
    tokens: int
    first_loss: float | None
    """Validation loss before training; None without validation lessons."""
    best_loss: float | None
    stopped_early: bool


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


@dataclass(frozen=True)
class Trainer:
    """Trains the parameters of a model that require gradients, in place."""

    model: Model
    schedule: Schedule
    seed: int
    progress: Callable[[str, float], None]

    def run(self, train_on: Sequence[Lesson], check_on: Sequence[Lesson]) -> Outcome:
        """Train; ends on the state with the least validation loss. Raises RefusedError without lessons."""
        import torch

        torch.manual_seed(self.seed)
        learned = {name: p for name, p in self.model.module.named_parameters() if p.requires_grad}
        optimizer = _optimizer(list(learned.values()), self.schedule)
        total = _steps(len(train_on), self.schedule)
        best = _Best(learned, self._loss(check_on) if check_on else None)
        looks = {round(total * (i + 1) / self.schedule.checks) for i in range(self.schedule.checks)}
        step = tokens = 0
        self.model.module.train()
        for batch in _batches(train_on, self.schedule.batch, total, self.seed):
            self._learn(optimizer, batch, _rate(step, total, self.schedule))
            step += 1
            tokens += sum(len(lesson.ids) for lesson in batch)
            if step in looks and check_on:
                best.offer(self._loss(check_on))
            self.progress(f"step {step}/{total}, {best}", step / total)
            if best.waited >= self.schedule.patience:
                break
        best.restore(learned)
        self.model.module.eval()
        return Outcome(step, tokens, best.first, best.loss, stopped_early=step < total)

    def _learn(self, optimizer: Any, batch: Sequence[Lesson], rate: float) -> None:
        import torch

        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self._batch_loss(batch))
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        keep_zeros(self.model)  # Pruned weights stay zero, whatever the optimizer's moments say.

    def _batch_loss(self, batch: Sequence[Lesson]) -> torch.Tensor:
        """Mean cross-entropy over the tokens of a batch, each with its weight."""
        import torch

        ids, seen, answers = tensors(batch, self.model.tokenizer.pad_token_id)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.schedule.precision == "bf16"):
            logits = self.model.module(input_ids=ids, attention_mask=seen, use_cache=False).logits
        weights = torch.where(answers, 1.0, self.schedule.prompt_weight)[:, 1:]
        counted = seen[:, 1:].bool() & (weights > 0)
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1][counted].float(), ids[:, 1:][counted], reduction="none"
        )
        return (losses * weights[counted]).sum() / weights[counted].sum()

    def _loss(self, check_on: Sequence[Lesson]) -> float:
        """Mean loss per answer token over the validation lessons."""
        import torch

        module = self.model.module
        was_training = module.training
        module.eval()
        summed = count = 0.0
        ordered = sorted(check_on, key=lambda lesson: len(lesson.ids))
        with torch.inference_mode():
            for start in range(0, len(ordered), 32):
                batch = ordered[start : start + 32]
                tokens = sum(len(lesson.ids) - lesson.answer_from for lesson in batch)
                summed += float(self._batch_loss(batch)) * tokens
                count += tokens
        module.train(was_training)
        return summed / count


class _Best:
    """The best state so far, by validation loss."""

    def __init__(self, learned: Mapping[str, Any], loss: float | None) -> None:
        self._learned = learned
        self.first = self.loss = loss
        self.last = loss or math.nan
        self.waited = 0
        self._state = None if loss is None else self._copy()

    def offer(self, loss: float) -> None:
        self.last = loss
        if self.loss is not None and loss >= self.loss:
            self.waited += 1
            return
        self.loss, self.waited = loss, 0
        self._state = self._copy()

    def _copy(self) -> dict[str, Any]:
        return {name: p.detach().clone() for name, p in self._learned.items()}

    def __str__(self) -> str:
        return "no validation" if self.first is None else f"validation loss {self.last:.3f}"

    def restore(self, learned: Mapping[str, Any]) -> None:
        for name, value in (self._state or {}).items():
            learned[name].data.copy_(value)


def _optimizer(learned: Sequence[Any], schedule: Schedule) -> Any:
    """AdamW; matrices decay, vectors (norms and biases) do not."""
    import torch

    matrices, vectors = [p for p in learned if p.ndim > 1], [p for p in learned if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98))


def _steps(count: int, schedule: Schedule) -> int:
    if count == 0:
        raise RefusedError("There are no training examples to learn from.")
    steps = max(1, math.ceil(count * schedule.epochs / schedule.batch))
    return min(steps, schedule.max_steps or steps)


def _rate(step: int, total: int, schedule: Schedule) -> float:
    """Up over the first steps, level, then straight down over the rest (Haegele et al., 2024, arXiv:2405.18392)."""
    warm = max(1, min(MOST_WARM_UP_STEPS, round(total * schedule.warmup)))
    left = (total - step) / max(1.0, total * schedule.cooldown)
    return schedule.learning_rate * min(1.0, (step + 1) / warm, max(0.02, left))


def _batches(all_lessons: Sequence[Lesson], size: int, total: int, seed: int) -> Iterator[list[Lesson]]:
    """`total` batches; each epoch is shuffled, and within it lessons of like length stand together to spare padding."""
    order, made = random.Random(seed), 0
    while made < total:
        shuffled = order.sample(range(len(all_lessons)), len(all_lessons))
        chunks = [shuffled[i : i + 32 * size] for i in range(0, len(shuffled), 32 * size)]
        epoch: list[list[int]] = []
        for chunk in chunks:
            chunk.sort(key=lambda i: len(all_lessons[i].ids))
            epoch += [chunk[i : i + size] for i in range(0, len(chunk), size)]
        order.shuffle(epoch)
        for batch in epoch[: total - made]:
            made += 1
            yield [all_lessons[i] for i in batch]


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
