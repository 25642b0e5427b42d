"""Magnitude pruning (Han et al., 2015, arXiv:1506.02626): small weights matter least.

The plain yardstick: needs no data and no time, and loses more than methods that look at activations. Zeros save joules
only in an engine that has a kernel for them.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

from annotated_types import Gt, Lt

from leanwatt.contracts import Context, Outlook, Step
from leanwatt.model import Model
from leanwatt.prune._masking import Cut, foresee_masks, gone_first, whole_weights, zero_lowest


@final
@dataclass(frozen=True)
class Magnitude(Step):
    """Set the smallest weights of the blocks' linear layers to zero."""

    sparsity: Annotated[float, Gt(0), Lt(1)] | None = None
    """Share of the weights that goes; or give a pattern. What earlier pruning removed counts."""
    pattern: str | None = None
    """N:M, such as "2:4": of every M neighbours along the inputs the N largest stay."""
    over: Literal["layer", "model"] = "layer"
    """The sparsity holds in every layer, or one threshold holds over all of them."""

    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        Cut(self.sparsity, self.pattern, self.over)

    def foresee(self, outlook: Outlook) -> None:
        """Masks, and where asked for a pattern."""
        foresee_masks(outlook, "prune magnitude", self.pattern)

    def apply(self, model: Model, context: Context) -> Model:
        """Zero the weights in place and keep the masks."""
        cut = Cut(self.sparsity, self.pattern, self.over)
        weights = whole_weights(model, "magnitude")
        cut.check(weights)
        zero_lowest(model, cut, ({name: gone_first(model, name, w.abs())} for name, w in weights.items()))
        model.history.append(f"prune magnitude {cut}")
        return model
