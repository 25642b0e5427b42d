"""From scores to masks, unstructured or N:M: what the methods that set weights to zero share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from leanwatt.contracts import Outlook
from leanwatt.errors import RefusedError
from leanwatt.model import Model, linears, refuse_unknown_family, weight_of

if TYPE_CHECKING:
    import torch

GONE = -1.0
"""The score of a weight that earlier pruning removed; all others are from 0 up, so it goes first and counts."""


@dataclass(frozen=True)
class Cut:
    """How many weights go, and among which the scores compete. Raises ValueError where that is not clear."""

    sparsity: float | None
    pattern: str | None
    over: str
    """`row` (one output), `layer` or `model`."""

    def __post_init__(self) -> None:
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("give either sparsity or pattern")
        if self.pattern is not None:
            parse_pattern(self.pattern)
            if self.over == "model":
                raise ValueError("a pattern holds in every group of neighbours; leave out `over: model`")

    def __str__(self) -> str:
        return f"{self.pattern or self.sparsity}{' over the model' if self.over == 'model' else ''}"

    def check(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Raises RefusedError, before any work, where a pattern does not fit a layer."""
        group = parse_pattern(self.pattern)[1] if self.pattern else 1
        for name, weight in weights.items():
            if weight.shape[1] % group:
                raise RefusedError(f"{name} has {weight.shape[1]} inputs and cannot be pruned in groups of {group}.")

    def masks(self, scores: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """True for what stays, by layer; scores are (outputs, inputs), and the lowest go."""
        if self.over != "model":
            return {name: self._mask(score) for name, score in scores.items()}
        return over_all(scores, self.sparsity or 0.0)

    def _mask(self, score: torch.Tensor) -> torch.Tensor:
        if self.pattern is not None:
            return n_of_m(score, *parse_pattern(self.pattern))
        if self.over == "row":
            return ~lowest(score, round((self.sparsity or 0.0) * score.shape[1]))
        return unstructured(score, self.sparsity or 0.0)


def parse_pattern(pattern: str) -> tuple[int, int]:
    """`2:4` -> (2, 4): at most two of four neighbours stay. Raises ValueError."""
    kept, colon, group = pattern.partition(":")
    if not (colon and kept.isdigit() and group.isdigit() and 0 < int(kept) < int(group)):
        raise ValueError("write a pattern as N:M with N below M, such as 2:4")
    return int(kept), int(group)


def over_all(scores: Mapping[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    """True for what stays, by layer, where one threshold holds over all layers."""
    import torch

    together = unstructured(torch.cat([score.flatten() for score in scores.values()]), sparsity)
    parts = torch.split(together, [score.numel() for score in scores.values()])
    return {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}


def unstructured(score: torch.Tensor, sparsity: float) -> torch.Tensor:
    """True for what stays; exactly round(sparsity * size) weights of the lowest score go. Any shape."""
    return ~lowest(score.reshape(1, -1), round(sparsity * score.numel())).view_as(score)


def lowest(score: torch.Tensor, count: int) -> torch.Tensor:
    """True for exactly `count` of each row, those of the lowest score; among equals the first. (rows, members)."""
    import numpy as np
    import torch

    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    # NumPy's selection is ten times as fast as torch's sort, topk or kthvalue on a CPU.
    selected = np.partition(score.numpy(force=True), count - 1, axis=-1)[:, count - 1 : count]
    threshold = torch.from_numpy(selected).to(score.device)
    found = score <= threshold
    if int(found.sum()) > count * len(score):
        below, equal = score < threshold, score == threshold
        found = below | (equal & (equal.cumsum(-1) <= count - below.sum(-1, keepdim=True)))
    return found


def n_of_m(score: torch.Tensor, kept: int, group: int) -> torch.Tensor:
    """True for what stays: the `kept` highest of every `group` neighbours along the inputs; (outputs, inputs)."""
    return best_of(score.reshape(-1, group).t().contiguous(), kept).t().reshape(score.shape)


def best_of(score: torch.Tensor, kept: int) -> torch.Tensor:
    """True for the `kept` highest of each column; among equals the first stay. (members, columns)."""
    import torch

    above = torch.zeros(score.shape, dtype=torch.uint8, device=score.device)  # How many of its column beat it.
    for earlier, later in combinations(range(len(score)), 2):
        is_earlier_first = score[earlier] >= score[later]
        above[later] += is_earlier_first
        above[earlier] += ~is_earlier_first
    return above < kept


def whole_weights(model: Model, name: str) -> dict[str, torch.Tensor]:
    """The weights that a mask may touch, as (outputs, inputs). Raises RefusedError where zeros would not last."""
    refuse_unknown_family(model.module.config)
    if model.has_adapters:
        raise RefusedError(f"prune {name}: the model has adapters; put `merge: [merge]` before it.")
    if model.codes:
        raise RefusedError(f"prune {name} after quantize would break the integer codes; put prune before quantize.")
    return {layer: weight_of(module) for layer, module in linears(model.module).items()}


def gone_first(model: Model, name: str, score: torch.Tensor) -> torch.Tensor:
    """The score in float32, and `GONE` for what earlier pruning of the layer removed: it counts toward the sparsity."""
    score = score.float()
    return score if name not in model.masks else score.masked_fill(~model.masks[name], GONE)


def foresee_masks(outlook: Outlook, name: str, pattern: str | None) -> None:
    """Note in `outlook` that the step called `name` leaves masks, and which N:M pattern they keep."""
    outlook.left["masks"] = name
    if pattern:
        outlook.left["pattern"] = f"{name} {pattern}"


def zero_lowest(model: Model, cut: Cut, scores: Iterable[Mapping[str, torch.Tensor]]) -> None:
    """Zero the weights of the lowest score: of some layers after the other, or of all together once all are scored."""
    together: dict[str, torch.Tensor] = {}
    for some in scores:
        if cut.over == "model":
            together |= some
        else:
            put_on(model, cut.masks(some), cut.pattern)
    if together:
        put_on(model, cut.masks(together), cut.pattern)


def put_on(model: Model, masks: Mapping[str, torch.Tensor], pattern: str | None) -> None:
    """Zero what goes, and remember the masks; earlier masks stay in force."""
    layers = linears(model.module)
    for name, mask in masks.items():
        both = mask & model.masks[name] if name in model.masks else mask
        model.masks[name] = both
        weight_of(layers[name]).mul_(both)
        if pattern:
            model.patterns[name] = min(pattern, model.patterns.get(name, pattern), key=_strictness)


def _strictness(pattern: str) -> tuple[float, int]:
    """Where two patterns hold, the one that leaves fewer, or leaves them in smaller groups, is remembered."""
    kept, group = parse_pattern(pattern)
    return kept / group, group
