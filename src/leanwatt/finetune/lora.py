"""LoRA (Hu et al., 2021, arXiv:2106.09685): small matrices beside the linear layers learn, the model stays.

For models too large to train whole. It leaves adapters; `merge: [merge]` puts them into the weights, which pruning and
quantization need.

At int8 and nf4 the base is held in 8 or 4 bits while the adapters learn (LLM.int8: Dettmers et al., 2022,
arXiv:2208.07339; QLoRA: Dettmers et al., 2023, arXiv:2305.14314), by the library bitsandbytes, on CPUs too: extra
`lora`. Afterwards the base's weights are what their codes say, in 16 bits, so that the saved model is the one that the
adapters have learned to correct. To see what merging and quantizing again does, grade both states:
`merge: [none, merge]`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal, final

from annotated_types import Ge, Gt, Lt

from leanwatt.contracts import Context, Outlook
from leanwatt.errors import MissingExtraError, RefusedError
from leanwatt.finetune import _low_bits
from leanwatt.finetune._tuning import FineTuning, tune
from leanwatt.model import Model, cast, linears
from leanwatt.quiet import quiet

_TWICE = "finetune lora: the model has adapters already; put `merge: [merge]` between."
_OVER_MASKS = (
    "finetune lora after prune would fill the zeros when merged; use finetune full or distill, or prune later, or "
    "insist with `merge: [dense]` between them, which gives the zeros up."
)


@final
@dataclass(frozen=True)
class Lora(FineTuning):
    """Train low-rank adapters on all linear layers of the blocks; the base keeps its weights."""

    precision: Literal["fp32", "bf16", "int8", "nf4"] = "fp32"
    """Of the frozen base; the adapters learn in fp32. int8 and nf4 multiply in 16 bits and need the extra `lora`."""
    rank: Annotated[int, Ge(1)] = 16
    """Inner size of the adapters."""
    alpha: Annotated[float, Gt(0)] = 32.0
    """Adapters count `alpha / rank` times."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of adapter inputs dropped while training."""
    learning_rate: Annotated[float, Gt(0)] = 2e-3
    """Highest rate; it rises over the first steps and falls over the last two fifths."""
    batch: Annotated[int, Gt(0)] = 16
    """Examples per optimizer step."""

    version: ClassVar[int] = 1

    def foresee(self, outlook: Outlook) -> None:
        """Adapters; refused beside other adapters and over masks."""
        if "adapters" in outlook.left:
            raise RefusedError(_TWICE)
        if "masks" in outlook.left:
            raise RefusedError(_OVER_MASKS)
        outlook.left["adapters"] = "finetune lora"

    def __post_init__(self) -> None:
        if self.precision in ("int8", "nf4") and find_spec("bitsandbytes") is None:
            raise MissingExtraError(
                f"finetune.lora: precision {self.precision} needs 'bitsandbytes'. "
                "Install it with: pip install 'leanwatt[lora]'"
            )

    def apply(self, model: Model, context: Context) -> Model:
        """Put adapters beside the linear layers and train them."""
        if model.has_adapters:
            raise RefusedError(_TWICE)
        if model.masks:
            raise RefusedError(_OVER_MASKS)
        with quiet():  # In 8 bits each product would say that it casts its inputs.
            return self._tuned(model, context)

    def _tuned(self, model: Model, context: Context) -> Model:
        import torch
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(context.seed)
        full = torch.float32 if self.precision == "fp32" else torch.bfloat16
        cast(model.module, full).requires_grad_(False)
        layers = linears(model.module)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(layers),
            fan_in_fan_out=self._is_transposed(layers),
            task_type="CAUSAL_LM",
        )
        if self.precision in ("int8", "nf4"):
            model.module = _low_bits.held_in(self.precision, model.module)
        model.module = get_peft_model(model.module, config)
        schedule = self.schedule(context, "fp32" if self.precision == "fp32" else "bf16")
        tuned = tune(model, context, schedule, f"finetune lora {self.precision} rank {self.rank}")
        if self.precision in ("int8", "nf4"):
            config = replace(config, fan_in_fan_out=any(map(_is_conv1d, layers.values())))
            tuned.module = _low_bits.given_back(tuned.module, layers, config)
        return tuned

    def _is_transposed(self, layers: Mapping[str, Any]) -> bool:
        """GPT-2 keeps its weights the other way round, but not while bitsandbytes holds them."""
        return self.precision in ("fp32", "bf16") and any(map(_is_conv1d, layers.values()))


def _is_conv1d(layer: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D)
