"""Full fine-tuning: every weight learns. Best quality for small models; most memory and joules for large ones."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from leanwatt.contracts import Context
from leanwatt.errors import RefusedError
from leanwatt.finetune._tuning import FineTuning, tune
from leanwatt.model import Model, cast


@final
@dataclass(frozen=True)
class Full(FineTuning):
    """Train all weights on the tasks' training examples; ends on the best validation loss."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 multiply in 16 bits while weights and optimizer stay in fp32, fp16 with loss scaling; the result is
    then saved in that dtype. On CPUs fp16 has no fast path: take bf16 there."""

    version: ClassVar[int] = 2

    def apply(self, model: Model, context: Context) -> Model:
        """Train all weights in place."""
        import torch

        cast(model.module, torch.float32).requires_grad_(True)
        tuned = tune(model, context, self.schedule(context, self.precision), f"finetune full {self.precision}")
        return tuned if self.precision == "fp32" else _halved(tuned, self.precision)


def _halved(model: Model, precision: str) -> Model:
    """Weights in 16 bits. Raises RefusedError for one that fp16 cannot hold, and names it."""
    import torch

    cast(model.module, torch.bfloat16 if precision == "bf16" else torch.float16)
    for name, parameter in model.module.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise RefusedError(f"finetune full: {name} has weights too large for {precision}; use bf16.")
    return model
