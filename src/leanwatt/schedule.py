"""How to train: the settings of the training loop, and the steps and learning rates that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from leanwatt.errors import RefusedError

MOST_WARM_UP_STEPS = 50


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
    """`bf16` and `fp16` multiply in 16 bits (autocast) and keep the weights in fp32; fp16 scales the loss."""
    at_once: int | None = None
    """Lessons per pass; the gradients of a step's passes add up. None takes the whole batch."""
    checkpointing: bool = False
    """Keep only each block's input for the way back, and compute the rest again: less memory, a third more work."""

    def steps(self, lessons: int) -> int:
        """Optimizer steps over so many lessons. Raises RefusedError without any."""
        if lessons == 0:
            raise RefusedError("There are no training examples to learn from.")
        steps = max(1, math.ceil(lessons * self.epochs / self.batch))
        return min(steps, self.max_steps or steps)

    def rate(self, step: int, total: int) -> float:
        """Up over the first steps, level, then straight down over the rest (Haegele et al., 2024, arXiv:2405.18392)."""
        warm = max(1, min(MOST_WARM_UP_STEPS, round(total * self.warmup)))
        left = (total - step) / max(1.0, total * self.cooldown)
        return self.learning_rate * min(1.0, (step + 1) / warm, max(0.02, left))
