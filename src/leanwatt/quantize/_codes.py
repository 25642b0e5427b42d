"""From weights to codes and scales, and codes into a model: what the methods that store few bits share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leanwatt.contracts import Outlook
from leanwatt.errors import RefusedError
from leanwatt.model import Codes, Model, linears, weight_of

if TYPE_CHECKING:
    import torch

SMALLEST = 1e-7
"""Least scale: that of a group of zeros, and still a number in 16 bits."""


def whole_layers(model: Model, name: str) -> dict[str, Any]:
    """The layers that may be quantized, as in `linears`. Raises RefusedError where the codes would not last."""
    if model.has_adapters:
        raise RefusedError(f"quantize {name}: the model has adapters; put `merge: [merge]` before it.")
    if model.codes:
        raise RefusedError(f"quantize {name}: the model is quantized already; leave one of the two out.")
    return linears(model.module)


def foresee_codes(outlook: Outlook, name: str) -> None:
    """Note in `outlook` that the step called `name` leaves integer codes."""
    outlook.left["codes"] = f"quantize {name}"


def code_range(bits: int) -> tuple[int, int]:
    """The lowest and the highest code: all that so many bits can tell apart. Zero is one of them."""
    half = int(2 ** (bits - 1))
    return -half, half - 1


def group_size(columns: int, group: int) -> int:
    """How many neighbours share a scale: the group where it divides the columns, else the whole row."""
    return group if group and columns % group == 0 else columns


def grouped(weight: torch.Tensor, group: int) -> torch.Tensor:
    """float32, (rows, groups, size)."""
    rows, columns = weight.shape
    size = group_size(columns, group)
    return weight.float().reshape(rows, columns // size, size)


def stored_scales(scales: torch.Tensor) -> torch.Tensor:
    """Scales in the 16 bits that engines keep them in, so that everybody multiplies by the same number; float32."""
    import torch

    return scales.clamp(min=SMALLEST).to(torch.float16).float()


def scales_of(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Of a group's largest weight half a step is lost at most, on either side: float32, (rows, groups)."""
    return stored_scales(grouped(weight, group).abs().amax(-1) / (code_range(bits)[1] + 0.5))


def round_to(weight: torch.Tensor, scales: torch.Tensor, bits: int) -> Codes:
    """The nearest integers of a weight (rows, columns) under scales (rows, groups)."""
    import torch

    rows, groups = scales.shape
    codes = (weight.float().reshape(rows, groups, -1) / scales.unsqueeze(-1)).round_().clamp_(*code_range(bits))
    return Codes(codes.view(weight.shape).to(torch.int8), scales, bits)


def nearest_codes(weight: torch.Tensor, bits: int, group: int) -> Codes:
    """Integers and scales of a weight (rows, columns)."""
    return round_to(weight, scales_of(weight, bits, group), bits)


def put_in(model: Model, name: str, layer: Any, codes: Codes) -> None:
    """The layer holds what the codes say, and the model keeps the codes. Raises RefusedError."""
    weight = weight_of(layer)
    weight.copy_(codes.weight)  # In place: a new tensor would stand in memory beside the pages of the file.
    lowest, highest = weight.aminmax()  # One pass; what is not finite shows in them.
    if not (lowest.isfinite() and highest.isfinite()):
        raise RefusedError(f"{name}: quantized, some weights are no finite numbers in {weight.dtype}.")
    model.codes[name] = codes
