"""How much rounding changes what a layer sends on, and the ranges that change it least: what gptq and awq share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leanwatt.quantize._codes import round_to, scales_of, stored_scales

if TYPE_CHECKING:
    import torch

CUTS = tuple(1 - 0.05 * i for i in range(11))
"""Shares of a range that are tried."""
WIDEST = 128
"""Inputs whose errors are seen together: rounding errors of others are as good as independent, and would cost most."""


def diagonal_blocks(gram: torch.Tensor, within: int) -> torch.Tensor:
    """What neighbouring inputs do together, (blocks, size, size); the size divides `within` and is small."""
    import torch

    size = within
    while size > WIDEST and size % 2 == 0:
        size //= 2
    return torch.stack([gram[i : i + size, i : i + size] for i in range(0, len(gram), size)])


def output_errors(change: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Squared error of the outputs when weights (rows, columns) change by so much: (rows, blocks)."""
    import torch

    parts = change.reshape(len(change), len(blocks), -1).transpose(0, 1)
    return (torch.bmm(parts, blocks) * parts).sum(-1).t()


def cut_scales(weight: torch.Tensor, gram: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Scales (rows, groups), smaller where it helps: a group's largest weights err more, so that the others err less.

    For a weight (rows, columns) whose inputs have this Gram matrix (columns, columns). Found by trying, group by group,
    as in AWQ (Lin et al., 2023, arXiv:2306.00978).
    """
    import torch

    whole = scales_of(weight, bits, group)
    rows, groups = whole.shape
    blocks = diagonal_blocks(gram, weight.shape[1] // groups)
    best, least = whole, torch.full_like(whole, float("inf"))
    for share in CUTS:
        tried = stored_scales(whole * share)
        error = output_errors(round_to(weight, tried, bits).weight - weight, blocks).reshape(rows, groups, -1).sum(-1)
        best, least = torch.where(error < least, tried, best), torch.minimum(error, least)
    return best
