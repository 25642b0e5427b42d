"""The training loop: what every fine-tuning and the starter's pre-training share.

Loss on the answer (in pre-training a little on the prompt too), batches of like length, AdamW with warm-up and a linear
cool-down, the best state by validation loss kept, early stop, masks of pruning kept. What was killed goes on from its
checkpoint, and ends with the same weights as if it had not been. Runs on an NVIDIA GPU where torch sees one: written
for that, and not yet run on one.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanwatt.checkpoint import Checkpoint
from leanwatt.curve import Recorder
from leanwatt.lesson import Lesson, tensors
from leanwatt.model import Model, accelerator, keep_zeros, mask_gradients, placed
from leanwatt.quiet import quiet
from leanwatt.recipe import digest
from leanwatt.schedule import Schedule

if TYPE_CHECKING:
    import torch

    from leanwatt.measurement import Reading


@dataclass(frozen=True)
class Teacher:
    """A model whose distributions are learned beside the right answers (Hinton et al., 2015, arXiv:1503.02531)."""

    module: Any
    """A causal language model with the learner's vocabulary, in eval mode."""
    temperature: float
    """Above 1 both distributions are flattened, so that unlikely tokens count more."""
    share: float
    """Of the teacher in the loss; the rest is the right answer's."""

    def losses(
        self, logits: torch.Tensor, ids: torch.Tensor, seen: torch.Tensor, counted: torch.Tensor
    ) -> torch.Tensor:
        """Divergence of `logits` (tokens, vocabulary) from the teacher's, times the squared temperature: (tokens,).

        `ids` and `seen` are the batch, (lessons, longest); `counted` (lessons, longest - 1) picks the tokens.
        """
        import torch

        with torch.no_grad():
            taught = self.module(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, :-1][counted]
        mine = torch.log_softmax(logits / self.temperature, dim=-1)
        theirs = torch.log_softmax(taught.float() / self.temperature, dim=-1)
        apart = torch.nn.functional.kl_div(mine, theirs, reduction="none", log_target=True).sum(-1)
        return apart * self.temperature**2


@dataclass(frozen=True)
class Outcome:
    """What training came to."""

    steps: int
    tokens: int
    first_loss: float | None
    """Validation loss before training; None without validation lessons."""
    best_loss: float | None
    stopped_early: bool


@dataclass(frozen=True)
class Trainer:
    """Trains the parameters of a model that require gradients, in place."""

    model: Model
    schedule: Schedule
    seed: int
    progress: Callable[[str, float], None]
    folder: Path | None = None
    """Where checkpoints are kept; None keeps none."""
    read: Callable[[], Reading] | None = None
    """The meter, for what the way to each validation loss took."""
    teacher: Teacher | None = None
    """Learned from in training; the validation loss, which picks the best state, is that of the right answers."""
    device: str = field(default_factory=accelerator)
    """As torch names it; the model comes back from it."""

    def run(self, train_on: Sequence[Lesson], check_on: Sequence[Lesson]) -> Outcome:
        """Train; ends on the state with the least validation loss. Raises RefusedError without lessons."""
        if self.teacher is not None:
            self.teacher.module.to(self.device)
        with placed(self.model, self.device):
            return self._run(train_on, check_on)

    def _run(self, train_on: Sequence[Lesson], check_on: Sequence[Lesson]) -> Outcome:
        import torch

        torch.manual_seed(self.seed)
        total = self.schedule.steps(len(train_on))
        looks = {round(total * (i + 1) / self.schedule.checks) for i in range(self.schedule.checks)}
        checkpoint = Checkpoint(self.folder, self._identity(train_on, check_on))
        self._set_up(training=True)
        state = self._begun(check_on, checkpoint.load())
        display = _Display(self.progress, state, total)
        for batch in islice(_batches(train_on, self.schedule.batch, total, self.seed), state.step, None):
            if state.best.waited >= self.schedule.patience:
                break
            state.loss = self._learn(state, batch, self.schedule.rate(state.step, total))
            state.step += 1
            state.tokens += sum(len(lesson.ids) for lesson in batch)
            if state.step in looks and check_on:
                state.best.offer(self._loss(check_on))
                state.curve.note(state.step, state.tokens, state.best.last)
            checkpoint.offer(state.kept)
            display.tell()
        state.best.restore(state.learned)
        self._set_up(training=False)
        if self.folder is not None and state.curve.curve.points:
            state.curve.curve.save(self.folder)
        return Outcome(state.step, state.tokens, state.best.first, state.best.loss, stopped_early=state.step < total)

    def _begun(self, check_on: Sequence[Lesson], kept: Mapping[str, Any] | None) -> _State:
        """At the first step, or where a killed run left off."""
        learned = {name: p for name, p in self.model.module.named_parameters() if p.requires_grad}
        optimizer, curve = _optimizer(list(learned.values()), self.schedule), Recorder(self.read)
        if kept is not None:
            state = _State(learned, optimizer, self._scaler(), _Best(learned, None), curve)
            state.go_on(kept)
            return state
        best = _Best(learned, self._loss(check_on) if check_on else None)
        curve.note(0, 0, best.loss)
        return _State(learned, optimizer, self._scaler(), best, curve)

    def _identity(self, train_on: Sequence[Lesson], check_on: Sequence[Lesson]) -> str:
        """Of all that a step depends on but the weights, whose folder follows them."""
        import torch

        learned = [[name, list(p.shape)] for name, p in self.model.module.named_parameters() if p.requires_grad]
        seen = digest([[lesson.ids, lesson.answer_from] for lesson in (*train_on, *check_on)])
        taught = self.teacher and [self.teacher.temperature, self.teacher.share]
        return digest([asdict(self.schedule), self.seed, learned, taught, len(train_on), seen, torch.__version__])

    def _scaler(self) -> Any:
        """Small gradients would be zero in fp16, so the loss is multiplied (Micikevicius et al., arXiv:1710.03740)."""
        import torch

        return torch.amp.GradScaler(self.device, enabled=self.schedule.precision == "fp16")

    def _set_up(self, *, training: bool) -> None:
        module = self.model.module
        module.train(training)
        if self.schedule.checkpointing:
            with quiet():
                if training:
                    module.gradient_checkpointing_enable({"use_reentrant": False})
                else:
                    module.gradient_checkpointing_disable()

    def _learn(self, state: _State, batch: Sequence[Lesson], rate: float) -> torch.Tensor:
        """One optimizer step; the loss on its way there, per token that counts."""
        import torch

        optimizer, scaler = state.optimizer, state.scaler
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        size = self.schedule.at_once or len(batch)
        weight = sum(_weight(lesson, self.schedule.prompt_weight) for lesson in batch)
        total = torch.zeros((), device=self.device)
        for start in range(0, len(batch), size):
            loss = self._summed_loss(batch[start : start + size]) / weight
            torch.autograd.backward(scaler.scale(loss))
            total += loss.detach()
        scaler.unscale_(optimizer)
        mask_gradients(self.model)
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        scaler.step(optimizer)  # In fp16 a step whose gradients overflowed is left out.
        scaler.update()
        keep_zeros(self.model)  # Pruned weights stay zero, whatever the optimizer's moments say.
        return total

    def _summed_loss(self, batch: Sequence[Lesson], *, teaching: bool = True) -> torch.Tensor:
        """Cross-entropy of answers, summed over tokens; in teaching prompts count by their weight, and the teacher."""
        import torch

        read = tensors(batch, self.model.tokenizer.pad_token_id)
        ids, seen, answers = (each.to(self.device) for each in read)
        half = _HALVES.get(self.schedule.precision)
        with torch.autocast(self.device, getattr(torch, half or "bfloat16"), enabled=half is not None):
            logits = self.model.module(input_ids=ids, attention_mask=seen, use_cache=False).logits
        weights = torch.where(answers, 1.0, self.schedule.prompt_weight if teaching else 0.0)[:, 1:]
        counted = seen[:, 1:].bool() & (weights > 0)
        chosen = logits[:, :-1][counted].float()
        losses = torch.nn.functional.cross_entropy(chosen, ids[:, 1:][counted], reduction="none")
        if teaching and self.teacher is not None:
            taught = self.teacher.losses(chosen, ids, seen, counted)
            losses = (1 - self.teacher.share) * losses + self.teacher.share * taught
        return (losses * weights[counted]).sum()

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
                summed += float(self._summed_loss(batch, teaching=False))
                count += sum(_weight(lesson, 0.0) for lesson in batch)
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
        return "no validation" if self.first is None else f"{self.last:.3f} in validation"

    def restore(self, learned: Mapping[str, Any]) -> None:
        for name, value in (self._state or {}).items():
            learned[name].data.copy_(value)

    def kept(self) -> dict[str, Any]:
        return {"first": self.first, "loss": self.loss, "last": self.last, "waited": self.waited, "state": self._state}

    def go_on(self, kept: Mapping[str, Any]) -> None:
        self.first, self.loss, self.last = kept["first"], kept["loss"], kept["last"]
        self.waited, self._state = kept["waited"], kept["state"]


@dataclass
class _State:
    """All that the next step depends on."""

    learned: Mapping[str, Any]
    optimizer: Any
    scaler: Any
    best: _Best
    curve: Recorder
    step: int = 0
    tokens: int = 0
    loss: torch.Tensor | float = math.nan
    """Of the latest step; only shown."""

    def kept(self) -> dict[str, Any]:
        import torch

        return {
            "step": self.step,
            "tokens": self.tokens,
            "learned": {name: p.detach() for name, p in self.learned.items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "dice": [torch.get_rng_state(), *torch.cuda.get_rng_state_all()],
            "best": self.best.kept(),
            "curve": self.curve.state(),
        }

    def go_on(self, kept: Mapping[str, Any]) -> None:
        import torch

        for name, value in kept["learned"].items():
            self.learned[name].data.copy_(value)
        self.optimizer.load_state_dict(kept["optimizer"])
        self.scaler.load_state_dict(kept["scaler"])
        self.best.go_on(kept["best"])
        self.curve.go_on(kept["curve"])
        self.step, self.tokens = kept["step"], kept["tokens"]
        first, *others = kept["dice"]
        torch.set_rng_state(first)
        torch.cuda.set_rng_state_all(others)


class _Display:
    """What is shown: the step, both losses, tokens per second and joules; the latest ones are asked once a second."""

    def __init__(self, progress: Callable[[str, float], None], state: _State, total: int) -> None:
        self._progress, self._state, self._total = progress, state, total
        self._begun, self._tokens = time.monotonic(), state.tokens
        self._asked, self._words = 0.0, ""

    def tell(self) -> None:
        state, now = self._state, time.monotonic()
        if now - self._asked >= 1.0:
            self._asked, self._words = now, f", {self._losses()}, {self._speed(now)}"
        text = f"step {state.step}/{self._total}{self._words}"
        self._progress(text, state.step / self._total)

    def _losses(self) -> str:
        return f"loss {float(self._state.loss):.3f}, {self._state.best}"

    def _speed(self, now: float) -> str:
        pace = (self._state.tokens - self._tokens) / max(now - self._begun, 1e-9)
        spent = self._state.curve.spent
        joules = "" if spent is None or spent.joules is None else f", {spent.joules:.3g} J"
        return f"{pace:.0f} tokens/s{joules}"


_HALVES = {"bf16": "bfloat16", "fp16": "float16"}


def _weight(lesson: Lesson, prompt_weight: float) -> float:
    """Of a lesson's tokens in the loss; the first token is never foretold."""
    answer = len(lesson.ids) - max(lesson.answer_from, 1)
    return answer + prompt_weight * max(0, lesson.answer_from - 1)


def _optimizer(learned: Sequence[Any], schedule: Schedule) -> Any:
    """AdamW; matrices decay, vectors (norms and biases) do not."""
    import torch

    matrices, vectors = [p for p in learned if p.ndim > 1], [p for p in learned if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98))


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
