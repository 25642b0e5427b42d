"""How much rounding changes what a layer sends on, and the ranges that change it least: what gptq and awq share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leanwatt.quantize._codes import code_range, scales_of, stored_scales

if TYPE_CHECKING:
    import torch

CUTS = tuple(1 - 0.05 * i for i in range(11))
"""Shares of a range that are tried."""
CACHED = 2**16
"""Weights that are tried on together: few enough to stay in a processor's cache."""
WIDEST = 128
"""Inputs whose errors are seen together: rounding errors of others are as good as independent, and would cost most."""


def diagonal_blocks(gram: torch.Tensor, within: int, widest: int = WIDEST) -> torch.Tensor:
    """What neighbouring inputs do together, (blocks, size, size).

    The size is `within`, halved until it is at most `widest` or odd.
    """
    import torch

    size = within
    while size > widest and size % 2 == 0:
        size //= 2
    return torch.stack([gram[i : i + size, i : i + size] for i in range(0, len(gram), size)])


def in_blocks(weight: torch.Tensor, count: int) -> torch.Tensor:
    """A weight (rows, columns) by blocks of neighbouring inputs: (blocks, rows, size)."""
    return weight.float().reshape(len(weight), count, -1).transpose(0, 1).contiguous()


def output_errors(change: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Squared error of the outputs when weights in blocks (blocks, rows, size) change by so much: (blocks, rows)."""
    import torch

    return (torch.bmm(change, blocks) * change).sum(-1)


def cut_scales(weight: torch.Tensor, gram: torch.Tensor, bits: int, group: int, widest: int = WIDEST) -> torch.Tensor:
    """Scales (rows, groups), smaller where it helps: a group's largest weights err more, so that the others err less.

    For a weight (rows, columns) whose inputs have this Gram matrix (columns, columns), of which the errors of at most
    `widest` inputs are seen together. Found by trying, group by group, as in AWQ (Lin et al., 2023, arXiv:2306.00978).
    """
    import torch

    whole = scales_of(weight, bits, group)
    blocks = diagonal_blocks(gram, weight.shape[1] // whole.shape[1], widest)
    few = max(1, CACHED // weight.shape[1])
    rows = zip(torch.split(weight, few), torch.split(whole, few), strict=True)
    return torch.cat([_cut(*some, blocks, bits) for some in rows])


def _cut(weight: torch.Tensor, whole: torch.Tensor, blocks: torch.Tensor, bits: int) -> torch.Tensor:
    import torch

    groups = whole.shape[1]
    parts, inside = in_blocks(weight, len(blocks)), len(blocks) // groups
    best, least = whole, torch.full_like(whole, float("inf"))
    for share in CUTS:
        tried = stored_scales(whole * share)
        steps = tried.t().repeat_interleave(inside, 0).unsqueeze(-1)
        change = (parts / steps).round_().clamp_(*code_range(bits)).mul_(steps).sub_(parts)
        error = output_errors(change, blocks).view(groups, inside, -1).sum(1).t()
        best, least = torch.where(error < least, tried, best), torch.minimum(error, least)
    return best
