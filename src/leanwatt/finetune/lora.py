"""LoRA (Hu et al., 2021, arXiv:2106.09685): small matrices beside the linear layers learn, the model stays.

For models too large to train whole. It leaves adapters; `merge: [merge]` puts them into the weights, which pruning and
quantization need.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

from annotated_types import Ge, Gt, Lt

from leanwatt.contracts import Context, Outlook, Step
from leanwatt.errors import RefusedError
from leanwatt.finetune._tuning import tune
from leanwatt.model import Model, cast, linears, quiet
from leanwatt.training import Schedule

_TWICE = "finetune lora: the model has adapters already; put `merge: [merge]` between."
_OVER_MASKS = (
    "finetune lora after prune would fill the zeros when merged; use finetune full or distill, or prune later, or "
    "insist with `merge: [dense]` between them, which gives the zeros up."
)


@final
@dataclass(frozen=True)
class Lora(Step):
    """Train low-rank adapters on all linear layers of the blocks; the base keeps its weights."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the frozen base and of the multiplications; the adapters learn in fp32."""
    rank: Annotated[int, Ge(1)] = 16
    """Inner size of the adapters."""
    alpha: Annotated[float, Gt(0)] = 32.0
    """Adapters count `alpha / rank` times."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of adapter inputs dropped while training."""
    learning_rate: Annotated[float, Gt(0)] = 2e-3
    """Highest rate; it rises over the first steps and falls over the last two fifths."""
    epochs: Annotated[float, Gt(0)] = 1.0
    """Passes over the training examples."""
    batch: Annotated[int, Gt(0)] = 16
    """Examples per optimizer step."""

    version: ClassVar[int] = 1
    reads_data: ClassVar[bool] = True

    def foresee(self, outlook: Outlook) -> None:
        """Adapters; refused beside other adapters and over masks."""
        if "adapters" in outlook.left:
            raise RefusedError(_TWICE)
        if "masks" in outlook.left:
            raise RefusedError(_OVER_MASKS)
        outlook.left["adapters"] = "finetune lora"

    def apply(self, model: Model, context: Context) -> Model:
        """Put adapters beside the linear layers and train them."""
        import torch
        from peft import LoraConfig, get_peft_model

        if model.has_adapters:
            raise RefusedError(_TWICE)
        if model.masks:
            raise RefusedError(_OVER_MASKS)
        torch.manual_seed(context.seed)
        cast(model.module, torch.bfloat16 if self.precision == "bf16" else torch.float32).requires_grad_(False)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(linears(model.module)),
            fan_in_fan_out=_is_conv1d(model),
            task_type="CAUSAL_LM",
        )
        with quiet():
            model.module = get_peft_model(model.module, config)
        schedule = Schedule(
            self.learning_rate, self.epochs, self.batch, max_steps=context.max_steps, precision=self.precision
        )
        return tune(model, context, schedule, f"finetune lora {self.precision} rank {self.rank}")


def _is_conv1d(model: Model) -> bool:
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(layer, Conv1D) for layer in linears(model.module).values())
