"""AWQ (Lin et al., 2023, arXiv:2306.00978): the weights that meet large activations get the finer steps.

Each input feature's weights are multiplied by a power of its mean activation, and what feeds the layer is divided by
it: a norm, the values of attention, the linear branch of an MLP. The power is the one whose rounding changes the
layers' outputs least; then the range of every group is cut where that helps. For four bits. Behind a bent activation
(the second layer of the MLPs of GPT-2, GPT-NeoX and Phi) there is no place for scales: there only the ranges are cut.
Models with all norms behind the layers have no place at all, and are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, final

from annotated_types import Ge

from leanwatt.calibration import Calibrated, Visit, walk
from leanwatt.contracts import Context, Outlook
from leanwatt.model import Codes, Model, weight_of
from leanwatt.quantize._codes import foresee_codes, nearest_codes, put_in, round_to, whole_layers
from leanwatt.quantize._folding import Fold, fold, folds_of, refuse_without_norms
from leanwatt.quantize._ranges import cut_scales, diagonal_blocks, in_blocks, output_errors
from leanwatt.second_order import Gram

if TYPE_CHECKING:
    import torch

LEAST = 1e-4
"""Of a mean activation, relative to the largest: scales stay within four orders of magnitude."""


@dataclass(frozen=True)
class Inputs:
    """What enters a layer in calibration."""

    gram: torch.Tensor
    """Sum of x^T x over tokens, (features, features)."""
    mean: torch.Tensor
    """Mean of |x|, (features,)."""


@final
@dataclass(frozen=True)
class Awq(Calibrated):
    """Scale the blocks' linear layers by their activations, and store the weights as small integers."""

    bits: Literal[8, 4]
    """Size of a stored weight."""
    group: Annotated[int, Ge(0)] = 64
    """Neighbours along the inputs that share a scale; 0 for one scale per row. A layer that the group does not
    divide gets one scale per row."""
    powers: Annotated[int, Ge(1)] = 20
    """Powers from 0 (no scaling) to below 1 that are tried."""
    cut: bool = True
    """Also try smaller ranges for every group: few weights err more so that the others err less."""

    version: ClassVar[int] = 2

    def foresee(self, outlook: Outlook) -> None:
        """Codes."""
        foresee_codes(outlook, "awq")

    def apply(self, model: Model, context: Context) -> Model:
        """Scale and quantize in place, block by block: each sees what the quantized blocks before it send on."""
        whole_layers(model, "awq")
        refuse_without_norms(model, "awq")
        scaled = 0
        for visit in walk(model, self.sample(model, context), context):
            seen = _look(visit)
            chosen = [(each, self._scale(each, visit, seen)) for each in folds_of(visit)]
            weights = fold(visit, chosen)
            scale_of = {name: scale for each, scale in chosen for name in each.layers}
            scaled += len(scale_of)
            for name, layer in visit.layers.items():
                gram, scale = seen[name].gram, scale_of.get(name)
                smaller = gram if scale is None else gram / scale / scale.unsqueeze(1)
                put_in(model, name, layer, self._rounded(weights[name], smaller))
        model.history.append(
            f"quantize awq {self.bits} bits, group {self.group}, {scaled} of {len(model.codes)} layers scaled"
        )
        return model

    def _scale(self, each: Fold, visit: Visit, seen: dict[str, Inputs]) -> torch.Tensor:
        """The scales of one fold, (features,): those under which rounding changes the layers' outputs least."""
        import torch

        inputs = seen[each.layers[0]]
        weight = torch.cat([weight_of(visit.layers[name]).float() for name in each.layers])
        mean = each.tied(inputs.mean)
        mean = (mean / mean.max().clamp(min=1e-30)).clamp(min=LEAST)
        blocks = diagonal_blocks(inputs.gram, len(mean))
        best, least = torch.ones_like(mean), float("inf")
        for i in range(self.powers):
            scale = mean ** (i / self.powers)
            scale = scale / (scale.max() * scale.min()).sqrt()
            rounded = nearest_codes(weight * scale, self.bits, self.group).weight / scale
            error = float(output_errors(in_blocks(rounded - weight, len(blocks)), blocks).sum())
            if error < least:
                best, least = scale, error
        return best

    def _rounded(self, weight: torch.Tensor, gram: torch.Tensor) -> Codes:
        if not self.cut:
            return nearest_codes(weight, self.bits, self.group)
        return round_to(weight, cut_scales(weight, gram, self.bits, self.group), self.bits)


def _look(visit: Visit) -> dict[str, Inputs]:
    """Layer -> what enters it; layers that read the same share it."""
    grams: dict[tuple[str, ...], Gram] = {}
    sums: dict[tuple[str, ...], torch.Tensor] = {}
    for inputs in visit.shared_inputs():
        for names, tensor in inputs.items():
            gram = grams.setdefault(names, Gram())
            gram.add(tensor)
            total = tensor.float().abs().sum(0)
            sums[names] = sums[names] + total if names in sums else total
    seen = {names: Inputs(gram.matrix, sums[names] / gram.tokens) for names, gram in grams.items()}
    return {name: each for names, each in seen.items() for name in names}
