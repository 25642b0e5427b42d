"""Wanda: a weight matters as much as what it multiplies (Sun et al., 2023, arXiv:2306.11695).

The score of a weight is its size times the norm of its input over training examples; the weights of one output compete
with each other, and what stays is not changed. One pass through the model: far better than magnitude for little more.
At high sparsity, or with a pattern, sparsegpt errs less. Zeros save joules only in an engine that has a kernel for
them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, final

from annotated_types import Gt, Lt

from leanwatt.calibration import Calibrated, Stage, stages
from leanwatt.contracts import Context, Outlook
from leanwatt.model import Model, weight_of
from leanwatt.prune._masking import Cut, foresee_masks, gone_first, whole_weights, zero_lowest
from leanwatt.second_order import refuse_broken

if TYPE_CHECKING:
    import torch


@final
@dataclass(frozen=True)
class Wanda(Calibrated):
    """Set the weights to zero that are small, or whose inputs are."""

    sparsity: Annotated[float, Gt(0), Lt(1)] | None = None
    """Share of the weights that goes; or give a pattern. What earlier pruning removed counts."""
    pattern: str | None = None
    """N:M, such as "2:4": of every M neighbours along the inputs the N of the highest score stay."""
    over: Literal["row", "layer", "model"] = "row"
    """Where the sparsity holds: in every row of a weight, that is for each output (as in the paper), in every layer, or
    by one threshold over all layers, whose scores are then taken before anything is pruned."""

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        Cut(self.sparsity, self.pattern, self.over)

    def foresee(self, outlook: Outlook) -> None:
        """Masks, and where asked for a pattern."""
        foresee_masks(outlook, "prune wanda", self.pattern)

    def apply(self, model: Model, context: Context) -> Model:
        """Zero the weights in place, layer by layer, and keep the masks."""
        cut = Cut(self.sparsity, self.pattern, self.over)
        cut.check(whole_weights(model, "wanda"))
        on = self.sample(model, context)
        zero_lowest(model, cut, (_scores(model, stage) for stage in stages(model, on, context)))
        model.history.append(f"prune wanda {cut}")
        return model


def _scores(model: Model, stage: Stage) -> dict[str, "torch.Tensor"]:
    """|weight| * norm of its input, (outputs, inputs)."""
    import torch

    squares = sum(inputs.float().square().sum(0) for inputs in stage.inputs())
    norms = torch.as_tensor(squares).sqrt()
    refuse_broken(norms, " and ".join(stage.layers))
    return {name: gone_first(model, name, weight_of(each).abs() * norms) for name, each in stage.layers.items()}
