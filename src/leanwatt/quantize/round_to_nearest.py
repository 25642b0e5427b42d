"""Round to nearest: the plain yardstick of quantization. Needs no data and no time.

Symmetric: a code of zero is exactly zero, so what pruning set to zero stays so. Eight bits lose next to nothing; at
four bits methods that look at activations lose less.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, final

from annotated_types import Ge

from leanwatt.contracts import Context, Outlook, Step
from leanwatt.errors import RefusedError
from leanwatt.model import Codes, Model, linears, weight_of


@final
@dataclass(frozen=True)
class RoundToNearest(Step):
    """Store the weights of the blocks' linear layers as small integers with a scale per group."""

    bits: Literal[8, 4]
    """Size of a stored weight."""
    group: Annotated[int, Ge(0)] = 64
    """Neighbours along the inputs that share a scale; 0 for one scale per row. A layer that the group does not
    divide gets one scale per row."""

    version: ClassVar[int] = 1

    def foresee(self, outlook: Outlook) -> None:
        """Integer codes."""
        outlook.left["codes"] = "quantize round_to_nearest"

    def apply(self, model: Model, context: Context) -> Model:
        """Quantize in place: the module holds the dequantized weights, `codes` the integers."""
        if model.has_adapters:
            raise RefusedError("quantize round_to_nearest: the model has adapters; put `merge: [merge]` before it.")
        if model.codes:
            raise RefusedError("quantize round_to_nearest: the model is quantized already.")
        for name, layer in linears(model.module).items():
            weight = weight_of(layer)
            codes = nearest_codes(weight, self.bits, self.group)
            weight.copy_(codes.weight)
            model.codes[name] = _as_stored(codes, weight)
        model.history.append(f"quantize round_to_nearest {self.bits} bits, group {self.group}")
        return model


def nearest_codes(weight: Any, bits: int, group: int) -> Codes:
    """Integers and scales of a weight (rows, columns); the largest of a group gets the largest code."""
    import torch

    rows, columns = weight.shape
    size = group if group and columns % group == 0 else columns
    grouped = weight.float().reshape(rows, columns // size, size)
    largest = 2 ** (bits - 1) - 1
    # Scales are kept in the precision that engines store them in, so that everybody multiplies by the same number.
    scales = (grouped.abs().amax(-1) / largest).clamp(min=1e-7).to(torch.float16).float()
    codes = torch.round(grouped / scales.unsqueeze(-1)).clamp(-largest, largest)
    return Codes(codes.view(rows, columns).to(torch.int8), scales, bits)


def _as_stored(codes: Codes, weight: Any) -> Codes:
    """Checks that the weights in the module's dtype are still those of the codes. Raises RefusedError."""
    if not weight.equal(codes.weight.to(weight.dtype)):
        raise RefusedError("quantize round_to_nearest: the weights do not hold the codes' values.")
    return codes
