"""GPTQ (Frantar et al., 2022, arXiv:2210.17323): weights that are rounded later make up for those rounded before.

Inputs are settled one after the other for all outputs of a layer at once; what rounding one of them does to the layer's
outputs on training examples, the inputs to its right take up. Loses clearly less than rounding to nearest at four bits;
at eight there is little to lose. What pruning set to zero keeps the code 0, and its share of the error is made up for
like any other, so N:M stays N:M.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, final

from annotated_types import Ge, Gt, Le

from leanwatt.calibration import Calibrated, stages
from leanwatt.contracts import Context, Outlook
from leanwatt.model import Codes, Model, weight_of
from leanwatt.quantize._codes import code_range, foresee_codes, group_size, put_in, scales_of, whole_layers
from leanwatt.quantize._ranges import cut_scales
from leanwatt.second_order import LEAF, Gram, compensate, inverse_factor

if TYPE_CHECKING:
    import torch

NEAR = 8
"""Inputs whose errors are seen together when ranges are chosen: most of what they do together is made up for later."""


@final
@dataclass(frozen=True)
class Gptq(Calibrated):
    """Store the weights of the blocks' linear layers as small integers that undo each other's rounding."""

    bits: Literal[8, 4]
    """Size of a stored weight."""
    group: Annotated[int, Ge(0)] = 64
    """Neighbours along the inputs that share a scale; 0 for one scale per row. A layer that the group does not
    divide gets one scale per row."""
    order: Literal["inputs", "activation"] = "activation"
    """Which inputs are settled first: as they stand, or those with the largest activations, which then err least.
    Scales belong to neighbours either way, so engines see no difference."""
    cut: bool = True
    """Choose smaller ranges for groups where their largest weights may err more so that the others err less; else every
    range ends at the largest weight."""
    damping: Annotated[float, Gt(0), Le(1)] = 0.01
    """Share of the Gram matrix's mean diagonal that is added to its diagonal."""

    version: ClassVar[int] = 2

    def foresee(self, outlook: Outlook) -> None:
        """Codes."""
        foresee_codes(outlook, "gptq")

    def apply(self, model: Model, context: Context) -> Model:
        """Quantize in place, layer by layer: each sees what the quantized layers before it send on."""
        whole_layers(model, "gptq")
        for stage in stages(model, self.sample(model, context), context):
            gram = Gram()
            for inputs in stage.inputs():
                gram.add(inputs)
            self._quantize(model, stage.layers, gram.matrix)
        model.history.append(f"quantize gptq {self.bits} bits, group {self.group}, by {self.order}")
        return model

    def _quantize(self, model: Model, layers: dict[str, Any], gram: torch.Tensor) -> None:
        """Layers that read the same inputs are settled together: their outputs do not know of each other."""
        import torch

        weights = {name: weight_of(layer).float() for name, layer in layers.items()}
        together = self.codes(torch.cat(list(weights.values())), gram, " and ".join(layers))
        rows = [len(weight) for weight in weights.values()]
        parts = zip(layers.items(), torch.split(together.codes, rows), torch.split(together.scales, rows), strict=True)
        for (name, layer), codes, scales in parts:
            put_in(model, name, layer, Codes(codes.clone(), scales.clone(), self.bits))

    def codes(self, weight: torch.Tensor, gram: torch.Tensor, name: str) -> Codes:
        """Integers and scales of a weight (rows, columns) whose inputs have this Gram matrix (columns, columns).

        Raises RefusedError, naming the layer `name`, where the Gram matrix cannot be inverted.
        """
        import torch

        columns = weight.shape[1]
        order = torch.arange(columns) if self.order == "inputs" else gram.diagonal().argsort(descending=True)
        ordered = weight[:, order]
        scales = scales_of(weight, self.bits, self.group)
        if self.cut:
            scales = cut_scales(weight, gram, self.bits, self.group, NEAR)
        rule = _OnGrid(
            kept=ordered.t() != 0,
            scales=scales.t().contiguous(),
            groups=(order // group_size(columns, self.group)).tolist(),
            range=code_range(self.bits),
        )
        compensate(ordered, inverse_factor(gram[order][:, order], self.damping, name), rule)
        codes = torch.empty(columns, len(weight), dtype=torch.int8)
        codes[order] = torch.stack(rule.codes).to(torch.int8)
        return Codes(codes.t().contiguous(), scales, self.bits)


@dataclass
class _OnGrid:
    """The rule of `compensate` that settles a weight at the nearest code of its group; a zero stays zero."""

    kept: torch.Tensor
    """bool, (inputs, outputs), in the order of settling."""
    scales: torch.Tensor
    """float32, (groups, outputs)."""
    groups: list[int]
    """Of each input, in the order of settling."""
    range: tuple[int, int]
    """The lowest and the highest code."""
    codes: list[torch.Tensor] = field(default_factory=list)
    """What was settled so far, (outputs,) each."""
    group: int = LEAF
    """Ranges are fixed before, so no columns need be looked at together."""

    def look(self, start: int, values: torch.Tensor, spread: torch.Tensor) -> None:
        """Nothing to choose: the ranges are fixed."""

    def settle(self, column: int, values: torch.Tensor) -> torch.Tensor:
        """The nearest multiple of the scale, (outputs,)."""
        scale = self.scales[self.groups[column]]
        self.codes.append((values / scale).round_().clamp_(*self.range).mul_(self.kept[column]))
        return self.codes[-1] * scale
