"""NF4 (QLoRA, Dettmers et al., 2023, arXiv:2305.14314): sixteen levels that normally distributed weights use equally.

The format of bitsandbytes, from the paper's table, without its package: in four bits it errs less than sixteen equal
steps, and needs no data. Zero is a level, so what pruning set to zero stays so. It saves where an engine has a kernel
for the table, as OpenVINO does; elsewhere the weights are unpacked, and nothing is saved but disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, final

from annotated_types import Ge

from leanwatt.contracts import Context, Outlook, Step
from leanwatt.model import Codes, Model, weight_of
from leanwatt.quantize._codes import foresee_codes, grouped, put_in, stored_scales, whole_layers

if TYPE_CHECKING:
    import torch

LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Appendix E of the paper: quantiles of the normal distribution, zero among them, from -1 to 1."""


@final
@dataclass(frozen=True)
class Nf4(Step):
    """Store the weights of the blocks' linear layers as one of sixteen levels, with a scale per group."""

    group: Annotated[int, Ge(0)] = 64
    """Neighbours along the inputs that share a scale; 0 for one scale per row. A layer that the group does not
    divide gets one scale per row."""

    version: ClassVar[int] = 1

    def foresee(self, outlook: Outlook) -> None:
        """Codes."""
        foresee_codes(outlook, "nf4")

    def apply(self, model: Model, context: Context) -> Model:
        """Quantize in place: the module holds the dequantized weights, `codes` the levels' numbers."""
        for name, layer in whole_layers(model, "nf4").items():
            put_in(model, name, layer, nearest_levels(weight_of(layer), self.group))
        model.history.append(f"quantize nf4, group {self.group}")
        return model


def nearest_levels(weight: torch.Tensor, group: int) -> Codes:
    """Level numbers and scales of a weight (rows, columns); the largest of a group is at -1 or 1."""
    import torch

    levels = torch.tensor(LEVELS)
    parts = grouped(weight, group)
    scales = stored_scales(parts.abs().amax(-1))
    between = (levels[1:] + levels[:-1]) / 2
    places = torch.bucketize((parts / scales.unsqueeze(-1)).contiguous(), between)
    codes = (places - LEVELS.index(0.0)).view(weight.shape).to(torch.int8)
    return Codes(codes, scales, bits=4, levels=levels)
