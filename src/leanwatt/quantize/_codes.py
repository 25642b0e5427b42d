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


def largest_code(bits: int) -> int:
    """Codes go from minus this to this: the same on both sides, so that zero is a code."""
    return int(2 ** (bits - 1) - 1)


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
    """The largest of a group gets the largest code: float32, (rows, groups)."""
    return stored_scales(grouped(weight, group).abs().amax(-1) / largest_code(bits))


def round_to(weight: torch.Tensor, scales: torch.Tensor, bits: int) -> Codes:
    """The nearest integers of a weight (rows, columns) under scales (rows, groups)."""
    import torch

    rows, groups = scales.shape
    largest = largest_code(bits)
    codes = torch.round(weight.float().reshape(rows, groups, -1) / scales.unsqueeze(-1)).clamp_(-largest, largest)
    return Codes(codes.view(weight.shape).to(torch.int8), scales, bits)


def nearest_codes(weight: torch.Tensor, bits: int, group: int) -> Codes:
    """Integers and scales of a weight (rows, columns)."""
    return round_to(weight, scales_of(weight, bits, group), bits)


def put_in(model: Model, name: str, layer: Any, codes: Codes) -> None:
    """The layer holds what the codes say, and the model keeps the codes. Raises RefusedError."""
    weight = weight_of(layer)
    weight.copy_(codes.weight)
    if not weight.isfinite().all():
        raise RefusedError(f"{name}: quantized, some weights are no finite numbers in {weight.dtype}.")
    model.codes[name] = codes
