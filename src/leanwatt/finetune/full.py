"""Full fine-tuning: every weight learns. Best quality for small models; most memory and joules for large ones."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

from annotated_types import Gt

from leanwatt.contracts import Context, Step
from leanwatt.errors import RefusedError
from leanwatt.finetune._tuning import tune
from leanwatt.model import Model, cast
from leanwatt.training import Schedule


@final
@dataclass(frozen=True)
class Full(Step):
    """Train all weights on the tasks' training examples; ends on the best validation loss."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 multiply in 16 bits while weights and optimizer stay in fp32, fp16 with loss scaling; the result is
    then saved in that dtype. On CPUs fp16 has no fast path: take bf16 there."""
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    """Highest rate; it rises over the first steps and falls over the last two fifths."""
    epochs: Annotated[float, Gt(0)] = 1.0
    """Passes over the training examples."""
    batch: Annotated[int, Gt(0)] = 32
    """Examples per optimizer step."""
    at_once: Annotated[int, Gt(0)] | None = None
    """Examples per pass, where a whole step does not fit into memory; the gradients add up to the same step."""
    checkpointing: bool = False
    """Keep only each block's input for the way back and compute the rest again: less memory, a third more work."""
    checks: Annotated[int, Gt(0)] = 4
    """Looks at the validation loss, evenly spread; the best state seen is kept. More looks cost more, and tell more
    finely how many joules each loss took."""
    patience: Annotated[int, Gt(0)] = 2
    """Looks without an improvement before training stops early."""

    version: ClassVar[int] = 2
    reads_data: ClassVar[bool] = True

    def apply(self, model: Model, context: Context) -> Model:
        """Train all weights in place."""
        import torch

        cast(model.module, torch.float32).requires_grad_(True)
        schedule = Schedule(
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            batch=self.batch,
            checks=self.checks,
            patience=self.patience,
            max_steps=context.max_steps,
            precision=self.precision,
            at_once=self.at_once,
            checkpointing=self.checkpointing,
        )
        tuned = tune(model, context, schedule, f"finetune full {self.precision}")
        return tuned if self.precision == "fp32" else _halved(tuned, self.precision)


def _halved(model: Model, precision: str) -> Model:
    """Weights in 16 bits. Raises RefusedError for one that fp16 cannot hold, and names it."""
    import torch

    cast(model.module, torch.bfloat16 if precision == "bf16" else torch.float16)
    for name, parameter in model.module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise RefusedError(f"finetune full: {name} has weights too large for {precision}; use bf16.")
    return model
