"""Full fine-tuning: every weight learns. Best quality for small models; most memory and joules for large ones."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

from annotated_types import Gt

from leanwatt.contracts import Context, Step
from leanwatt.finetune._tuning import tune
from leanwatt.model import Model, cast
from leanwatt.training import Schedule


@final
@dataclass(frozen=True)
class Full(Step):
    """Train all weights on the tasks' training examples; ends on the best validation loss."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 multiplies in bfloat16 while weights and optimizer stay in fp32; the result is then saved in bfloat16."""
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    """Highest rate; it rises over the first steps and falls over the last two fifths."""
    epochs: Annotated[float, Gt(0)] = 1.0
    """Passes over the training examples."""
    batch: Annotated[int, Gt(0)] = 32
    """Examples per optimizer step."""

    version: ClassVar[int] = 1
    reads_data: ClassVar[bool] = True

    def apply(self, model: Model, context: Context) -> Model:
        """Train all weights in place."""
        import torch

        cast(model.module, torch.float32).requires_grad_(True)
        schedule = Schedule(
            self.learning_rate, self.epochs, self.batch, max_steps=context.max_steps, precision=self.precision
        )
        tuned = tune(model, context, schedule, f"finetune full {self.precision}")
        if self.precision == "bf16":
            cast(tuned.module, torch.bfloat16)
        return tuned
