"""Linear layers that multiply with integer codes as they are, by torch's own kernels for CPUs (those under torchao)."""

from __future__ import annotations

from functools import cache
from typing import Any

from leanwatt.engine._weights import symmetric
from leanwatt.model import Codes, Model, linears

GROUPS = (256, 128, 64, 32)
"""Weights that may share a scale in torch's four-bit kernel."""


def put_kernels(model: Model) -> list[Codes]:
    """Replace every layer whose codes fit a kernel, in the module's dtype; returns the codes that are used.

    Four bits: groups of 32 to 256 (a larger group repeats its scale). Eight bits: one scale per row. Scales are held in
    the module's dtype, so bf16 rounds them as it rounds all that it multiplies.
    """
    layers, taken = linears(model.module), []
    for name, codes in symmetric(model).items():
        operands = _operands(codes, model.module.dtype)
        if operands is not None:
            model.module.set_submodule(name, _layer_class()(codes.bits, operands, layers[name].bias))
            taken.append(codes)
    return taken


def _operands(codes: Codes, dtype: Any) -> tuple[Any, ...] | None:
    """What the kernel takes after its input; None where the codes do not fit it."""
    import torch

    rows, groups = codes.scales.shape
    columns = codes.codes.shape[1]
    if codes.bits == 8:
        return (codes.codes.contiguous(), codes.scales[:, 0].to(dtype).contiguous()) if groups == 1 else None
    size = next((size for size in GROUPS if (columns // groups) % size == 0), None)
    if size is None or rows % 16:
        return None
    packed = torch._convert_weight_to_int4pack_for_cpu(codes.codes.to(torch.int32) + 8, 1)
    scales = codes.scales.repeat_interleave(columns // size // groups, dim=1).t()
    # The kernel adds an offset to each group; ours is zero, since a code of zero is exactly zero.
    return packed, size, torch.stack([scales, torch.zeros_like(scales)], -1).to(dtype).contiguous()


@cache
def _layer_class() -> Any:
    """Made when first needed, so that torch is not loaded before."""
    import torch
    from torch import nn

    class LowBit(nn.Module):
        def __init__(self, bits: int, operands: tuple[Any, ...], bias: Any) -> None:
            super().__init__()
            self.bits, self.bias = bits, bias
            self.register_buffer("packed", operands[0])
            self.register_buffer("scales", operands[-1])
            self.size = operands[1] if bits == 4 else 0

        def forward(self, values: Any) -> Any:
            flat = values.reshape(-1, values.shape[-1]).contiguous()
            if self.bits == 4:
                out = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.packed, self.size, self.scales)
            else:
                out = torch.ops.aten._weight_int8pack_mm(flat, self.packed, self.scales)
            out = out.view(*values.shape[:-1], -1)
            return out if self.bias is None else out + self.bias

    return LowBit
