"""Magnitude pruning (Han et al., 2015, arXiv:1506.02626): small weights matter least.

The plain yardstick: needs no data and no time, and loses more than methods that look at activations. Zeros save joules
only in an engine that has a kernel for them.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

from annotated_types import Gt, Lt

from leanwatt.contracts import Context, Outlook, Step
from leanwatt.model import Model
from leanwatt.prune._masking import foresee_masks, n_of_m, parse_pattern, put_on, unstructured, whole_weights


@final
@dataclass(frozen=True)
class Magnitude(Step):
    """Set the smallest weights of the blocks' linear layers to zero."""

    sparsity: Annotated[float, Gt(0), Lt(1)] | None = None
    """Share of the weights that goes; or give a pattern."""
    pattern: str | None = None
    """N:M, such as "2:4": of every M neighbours along the inputs the N largest stay."""
    over: Literal["layer", "model"] = "layer"
    """The sparsity holds in every layer, or one threshold holds over all of them."""

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("give either sparsity or pattern")
        if self.pattern is not None:
            parse_pattern(self.pattern)

    def foresee(self, outlook: Outlook) -> None:
        """Masks, and where asked for a pattern."""
        foresee_masks(outlook, "prune magnitude", self.pattern)

    def apply(self, model: Model, context: Context) -> Model:
        """Zero the weights in place and keep the masks."""
        import torch

        sizes = {name: weight.abs().float() for name, weight in whole_weights(model, "magnitude").items()}
        if self.pattern:
            kept, group = parse_pattern(self.pattern)
            masks = {name: n_of_m(size, kept, group) for name, size in sizes.items()}
        elif self.over == "layer":
            masks = {name: unstructured(size, self.sparsity or 0.0) for name, size in sizes.items()}
        else:
            together = unstructured(torch.cat([size.flatten() for size in sizes.values()]), self.sparsity or 0.0)
            parts = torch.split(together, [size.numel() for size in sizes.values()])
            masks = {name: part.view_as(sizes[name]) for name, part in zip(sizes, parts, strict=True)}
        put_on(model, masks, self.pattern)
        model.history.append(f"prune magnitude {self.pattern or self.sparsity}")
        return model
