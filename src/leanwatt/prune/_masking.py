"""From scores to masks, unstructured or N:M: what the methods that set weights to zero share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from leanwatt.contracts import Outlook
from leanwatt.errors import RefusedError
from leanwatt.model import Model, linears, refuse_unknown_family, weight_of

if TYPE_CHECKING:
    import torch


def parse_pattern(pattern: str) -> tuple[int, int]:
    """`2:4` -> (2, 4): at most two of four neighbours stay. Raises ValueError."""
    kept, colon, group = pattern.partition(":")
    if not (colon and kept.isdigit() and group.isdigit() and 0 < int(kept) < int(group)):
        raise ValueError("write a pattern as N:M with N below M, such as 2:4")
    return int(kept), int(group)


def unstructured(score: torch.Tensor, sparsity: float) -> torch.Tensor:
    """True for what stays; exactly round(sparsity * size) weights of the lowest score go. Any shape."""
    import torch

    mask = torch.ones(score.numel(), dtype=torch.bool)
    lowest = torch.argsort(score.flatten(), stable=True)[: round(sparsity * score.numel())]
    mask[lowest] = False
    return mask.view_as(score)


def n_of_m(score: torch.Tensor, kept: int, group: int) -> torch.Tensor:
    """True for what stays: the `kept` highest of every `group` neighbours along the inputs; (outputs, inputs)."""
    import torch

    rows, columns = score.shape
    if columns % group:
        raise RefusedError(f"A layer with {columns} inputs cannot be pruned in groups of {group}.")
    grouped = score.reshape(rows, columns // group, group)
    keep = torch.argsort(grouped, dim=-1, descending=True, stable=True)[..., :kept]
    return torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, keep, True).view(rows, columns)


def whole_weights(model: Model, name: str) -> dict[str, torch.Tensor]:
    """The weights that a mask may touch, as (outputs, inputs). Raises RefusedError where zeros would not last."""
    refuse_unknown_family(model.module.config)
    if model.has_adapters:
        raise RefusedError(f"prune {name}: the model has adapters; put `merge: [merge]` before it.")
    if model.codes:
        raise RefusedError(f"prune {name} after quantize would break the integer codes; put prune before quantize.")
    return {layer: weight_of(module) for layer, module in linears(model.module).items()}


def foresee_masks(outlook: Outlook, name: str, pattern: str | None) -> None:
    """Note in `outlook` that the step called `name` leaves masks, and which N:M pattern they keep."""
    outlook.left["masks"] = name
    if pattern:
        outlook.left["pattern"] = f"{name} {pattern}"


def put_on(model: Model, masks: Mapping[str, torch.Tensor], pattern: str | None) -> None:
    """Zero what goes, and remember the masks; earlier masks stay in force."""
    layers = linears(model.module)
    for name, mask in masks.items():
        both = mask & model.masks[name] if name in model.masks else mask
        model.masks[name] = both
        weight_of(layers[name]).mul_(both)
        if pattern:
            model.patterns[name] = pattern
