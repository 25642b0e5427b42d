"""Pruning the direct, slow way: one example, one layer, one row, one weight at a time, in float64."""

from itertools import combinations
from typing import Any

from test_calibration import slow_inputs

from leanwatt.calibration import inputs_of
from leanwatt.model import linears, weight_of


def slow_magnitude(model: Any, context: Any, choose: Any) -> None:
    """`choose(score)` gives the mask of a layer, (outputs, inputs)."""
    for layer in linears(model.module).values():
        weight_of(layer).mul_(choose(weight_of(layer).double().abs()))


def slow_wanda(model: Any, context: Any, choose: Any) -> None:
    """Layer by layer as they run: each sees what the pruned ones before it send on."""
    for layer in linears(model.module).values():
        norms = slow_inputs(model, layer, context).double().norm(dim=0)
        weight_of(layer).mul_(choose(weight_of(layer).double().abs() * norms))


def slow_sparsegpt(model: Any, context: Any, choose: Any, group: int = 128) -> None:
    """The same, with the optimal brain surgeon of `surgeon` on every layer."""
    for layer in linears(model.module).values():
        x = slow_inputs(model, layer, context).double()
        weight = weight_of(layer)
        weight.copy_(surgeon(weight.double(), x.t() @ x, choose, group))


def slow_wanda_over_all(model: Any, context: Any) -> None:
    """Score all weights of the dense model, put them in one line, and take the lower half."""
    layers = linears(model.module)
    scores = {}
    for name, layer in layers.items():
        norms = slow_inputs(model, layer, context).double().norm(dim=0)
        scores[name] = weight_of(layer).double().abs() * norms
    for name, mask in lower_half_of_all_layers(scores).items():
        weight_of(layers[name]).mul_(mask)


def slow_sparsegpt_over_all(model: Any, context: Any) -> None:
    """What removing a weight alone costs in the dense model says how many of a layer go; the surgeon says which."""
    import torch

    layers = linears(model.module)
    scores = {}
    for name, layer in layers.items():
        x = slow_inputs(model, layer, context).double()
        gram = x.t() @ x
        inverse = torch.linalg.inv(gram + torch.eye(len(gram)) * 0.01 * gram.diagonal().mean())
        scores[name] = weight_of(layer).double().square() / inverse.diagonal()
    goes = {name: 1 - float(mask.double().mean()) for name, mask in lower_half_of_all_layers(scores).items()}
    for name, layer in layers.items():
        x = slow_inputs(model, layer, context).double()
        weight = weight_of(layer)
        weight.copy_(surgeon(weight.double(), x.t() @ x, lambda score, name=name: share_of_all(score, goes[name]), 128))


def lower_half_of_all_layers(scores: dict[str, Any]) -> dict[str, Any]:
    """The mask of each layer: one list of every weight of the model, sorted, and its first half goes."""
    import torch

    line = [(float(value), name, i) for name, score in scores.items() for i, value in enumerate(score.flatten())]
    masks = {name: torch.ones(score.numel(), dtype=torch.bool) for name, score in scores.items()}
    for _, name, place in sorted(line, key=lambda each: each[0])[: round(len(line) / 2)]:
        masks[name][place] = False
    return {name: mask.view_as(scores[name]) for name, mask in masks.items()}


def surgeon(weight: Any, gram: Any, choose: Any, group: int) -> Any:
    """Group by group choose what goes, then remove it weight by weight, each with a new inverse of what is left."""
    import torch

    gram = gram.double() + torch.eye(len(gram)) * 0.01 * gram.double().diagonal().mean()
    work, columns = weight.double().clone(), len(gram)
    for start in range(0, columns, group):
        stop = min(start + group, columns)
        inverses = [torch.linalg.inv(gram[column:, column:]) for column in range(start, stop)]
        spread = torch.stack([inverse[0, 0] for inverse in inverses])
        mask = choose(work[:, start:stop].square() / spread)
        for place, inverse in enumerate(inverses):
            for row in range(len(work)):
                if not mask[row, place]:
                    column = start + place
                    work[row, column:] -= work[row, column] / inverse[0, 0] * inverse[0]
                    work[row, column] = 0.0
    return work


def half_of_all(score: Any) -> Any:
    """All but the lower half of the scores."""
    return share_of_all(score, 0.5)


def share_of_all(score: Any, goes: float) -> Any:
    """All but such a share of the scores, the lowest."""
    import torch

    order = sorted(range(score.numel()), key=lambda i: float(score.flatten()[i]))
    mask = torch.ones(score.numel(), dtype=torch.bool)
    mask[order[: round(score.numel() * goes)]] = False
    return mask.view_as(score)


def half_of_each_row(score: Any) -> Any:
    import torch

    return torch.stack([half_of_all(row) for row in score])


def best_two_of_four(score: Any) -> Any:
    """Of all masks that keep two of four neighbours the one that keeps most: every one is tried."""
    import torch

    mask = torch.zeros(score.shape, dtype=torch.bool)
    for row, kept in zip(score, mask, strict=True):
        for start in range(0, len(row), 4):
            pairs = combinations(range(start, start + 4), 2)
            kept[list(max(pairs, key=lambda pair, row=row: float(row[list(pair)].sum())))] = True
    return mask


def layer_errors(dense: Any, pruned: Any, texts: list[list[int]]) -> float:
    """Mean over layers of the relative error of its outputs, |(W - W') X| / |W X|, on the dense model's inputs X."""
    import torch

    inputs: dict[str, list[Any]] = {}
    with inputs_of(linears(dense.module)) as latest, torch.inference_mode():
        for ids in texts:
            dense.module(torch.tensor([ids]), use_cache=False)
            for name, x in latest.items():
                inputs.setdefault(name, []).append(x.flatten(0, -2).double())
    errors = []
    for name, layer in linears(dense.module).items():
        x = torch.cat(inputs[name])
        weight, other = weight_of(layer).double(), weight_of(linears(pruned.module)[name]).double()
        errors.append(float(((weight - other) @ x.t()).norm() / (weight @ x.t()).norm()))
    return sum(errors) / len(errors)
