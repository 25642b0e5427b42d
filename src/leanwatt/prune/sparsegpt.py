"""SparseGPT: what stays makes up for what goes (Frantar and Alistarh, 2023, arXiv:2301.00774).

Optimal brain surgeon, layer by layer: a weight's score is its square over the diagonal of the inverse of the inputs'
Gram matrix, and the weights to its right take up the error of its removal. The best of the one-shot methods at half
the weights and beyond, and with patterns; slower than wanda. Zeros save joules only in an engine that has a kernel for
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, final

from annotated_types import Gt, Lt

from leanwatt.calibration import Calibrated, Stage, stages
from leanwatt.contracts import Context, Outlook
from leanwatt.lesson import Lesson
from leanwatt.model import Model, weight_of
from leanwatt.prune._masking import (
    GONE,
    Cut,
    best_of,
    foresee_masks,
    gone_first,
    over_all,
    parse_pattern,
    put_on,
    unstructured,
    whole_weights,
)
from leanwatt.second_order import Gram, compensate, inverse_factor

if TYPE_CHECKING:
    import torch

BLOCK = 128
"""Neighbours along the inputs among which the weights of all outputs compete, as in the paper."""


@final
@dataclass(frozen=True)
class SparseGPT(Calibrated):
    """Set weights to zero and let the others of the same output take up the error."""

    sparsity: Annotated[float, Gt(0), Lt(1)] | None = None
    """Share of the weights that goes; or give a pattern. What earlier pruning removed counts."""
    pattern: str | None = None
    """N:M, such as "2:4": of every M neighbours along the inputs the N of the highest score stay."""
    over: Literal["layer", "model"] = "layer"
    """The sparsity holds in every layer; or one threshold over all layers, on scores that a first pass takes before
    anything is pruned, says how much each layer loses in a second pass."""
    damping: Annotated[float, Gt(0), Lt(1)] = 0.01
    """Added to the diagonal of the Gram matrix, as a share of its mean."""

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        Cut(self.sparsity, self.pattern, self.over)

    def foresee(self, outlook: Outlook) -> None:
        """Masks, and where asked for a pattern."""
        foresee_masks(outlook, "prune sparsegpt", self.pattern)

    def apply(self, model: Model, context: Context) -> Model:
        """Zero and change weights in place, layer by layer, and keep the masks."""
        cut, weights = Cut(self.sparsity, self.pattern, self.over), whole_weights(model, "sparsegpt")
        cut.check(weights)
        on = self.sample(model, context)
        shares = dict.fromkeys(weights, self.sparsity or 0.0)
        if self.over == "model":
            shares = self._shares(model, on, context)
        for stage in stages(model, on, context):
            factor = self._factor(stage)
            for name, layer in stage.layers.items():
                zeros = _Zeros(cut, shares[name], _kept(model, name, weights[name]))
                weight_of(layer).copy_(compensate(weight_of(layer), factor, zeros))
                put_on(model, {name: zeros.kept.t().contiguous()}, self.pattern)
        model.history.append(f"prune sparsegpt {cut}")
        return model

    def _factor(self, stage: Stage) -> "torch.Tensor":
        gram = Gram()
        for inputs in stage.inputs():
            gram.add(inputs)
        return inverse_factor(gram.matrix, self.damping, " and ".join(stage.layers))

    def _shares(self, model: Model, on: Sequence[Lesson], context: Context) -> dict[str, float]:
        """The share of each layer that lies below one threshold on the cost of removing a weight alone."""
        scores = {}
        for stage in stages(model, on, context):
            spread = self._factor(stage).square().sum(0)  # The diagonal of the inverse.
            for name, layer in stage.layers.items():
                scores[name] = gone_first(model, name, weight_of(layer).float().square() / spread)
        return {name: float((~mask).float().mean()) for name, mask in over_all(scores, self.sparsity or 0.0).items()}


def _kept(model: Model, name: str, weight: "torch.Tensor") -> "torch.Tensor":
    """What earlier pruning left, (inputs, outputs), bool; a copy that may be written to."""
    import torch

    earlier = model.masks.get(name)
    return torch.ones_like(weight.t(), dtype=torch.bool) if earlier is None else earlier.t().clone()


@dataclass
class _Zeros:
    """The rule that a column's removed weights become zero, and which these are is seen group by group."""

    cut: Cut
    share: float
    kept: Any
    """(inputs, outputs), bool: what earlier pruning left; what this one leaves as soon as a group was looked at."""

    @property
    def group(self) -> int:
        return BLOCK if self.cut.pattern is None else parse_pattern(self.cut.pattern)[1]

    def look(self, start: int, values: "torch.Tensor", spread: "torch.Tensor") -> None:
        kept = self.kept[start : start + len(values)]
        score = (values.square() / spread.unsqueeze(1)).masked_fill_(~kept, GONE)
        kept &= self._best(score)

    def _best(self, score: "torch.Tensor") -> "torch.Tensor":
        if self.cut.pattern is None:
            return unstructured(score, self.share)
        return best_of(score, parse_pattern(self.cut.pattern)[0])

    def settle(self, column: int, values: "torch.Tensor") -> "torch.Tensor":
        settled: torch.Tensor = values * self.kept[column]
        return settled
