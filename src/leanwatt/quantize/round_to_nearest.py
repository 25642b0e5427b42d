"""Round to nearest: the plain yardstick of quantization. Needs no data and no time.

Symmetric: a code of zero is exactly zero, so what pruning set to zero stays so. Eight bits lose next to nothing; at
four bits methods that look at activations lose less.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

from annotated_types import Ge

from leanwatt.contracts import Context, Outlook, Step
from leanwatt.model import Model, weight_of
from leanwatt.quantize._codes import foresee_codes, nearest_codes, put_in, whole_layers


@final
@dataclass(frozen=True)
class RoundToNearest(Step):
    """Store the weights of the blocks' linear layers as small integers with a scale per group."""

    bits: Literal[8, 4]
    """Size of a stored weight."""
    group: Annotated[int, Ge(0)] = 64
    """Neighbours along the inputs that share a scale; 0 for one scale per row. A layer that the group does not
    divide gets one scale per row."""

    version: ClassVar[int] = 2

    def foresee(self, outlook: Outlook) -> None:
        """Codes."""
        foresee_codes(outlook, "round_to_nearest")

    def apply(self, model: Model, context: Context) -> Model:
        """Quantize in place: the module holds the dequantized weights, `codes` the integers."""
        for name, layer in whole_layers(model, "round_to_nearest").items():
            put_in(model, name, layer, nearest_codes(weight_of(layer), self.bits, self.group))
        model.history.append(f"quantize round_to_nearest {self.bits} bits, group {self.group}")
        return model
