"""16-bit weights: half the bytes of fp32, and the yardstick that quantization has to beat.

bf16 keeps the range of fp32 and rounds to 8 binary digits; fp16 keeps 11 digits and ends at 65504, so a model with
larger weights is refused. Zeros stay zero. In which precision an engine then multiplies is its own affair, and stands
in the record.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from leanwatt.contracts import Context, Outlook, Step
from leanwatt.errors import RefusedError
from leanwatt.model import Model, cast


@final
@dataclass(frozen=True)
class Cast(Step):
    """Store all weights in 16 bits, those of embeddings and norms too."""

    dtype: Literal["bf16", "fp16"] = "bf16"
    """What the weights are stored in."""

    version: ClassVar[int] = 1

    def foresee(self, outlook: Outlook) -> None:
        """Weights that training would make larger again."""
        outlook.left["cast"] = "quantize cast"

    def apply(self, model: Model, context: Context) -> Model:
        """Cast in place. Raises RefusedError, naming the layer, where fp16 cannot hold a weight."""
        import torch

        if model.has_adapters:
            raise RefusedError("quantize cast: the model has adapters; put `merge: [merge]` before it.")
        if model.codes:
            raise RefusedError("quantize cast: the model is quantized already; put cast before, or leave it out.")
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[self.dtype]
        largest = torch.finfo(dtype).max
        for name, parameter in model.module.named_parameters():
            size = float(parameter.detach().abs().max())
            if not size <= largest:
                raise RefusedError(
                    f"quantize cast: {name} has a weight of {size:.4g}; {self.dtype} ends at {largest:.3g}. Use bf16."
                )
        cast(model.module, dtype)
        model.history.append(f"quantize cast {self.dtype}")
        return model
