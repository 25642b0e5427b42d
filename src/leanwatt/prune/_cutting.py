"""Taking rows and columns out of linear layers: what the methods that make a model truly smaller share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leanwatt.contracts import Outlook
from leanwatt.errors import RefusedError
from leanwatt.model import Model

if TYPE_CHECKING:
    import torch


def refuse_pattern(outlook: Outlook, name: str) -> None:
    """Removing single inputs shifts the groups of an N:M pattern. Raises RefusedError."""
    if "pattern" in outlook.left:
        raise RefusedError(
            f"prune {name} after {outlook.left['pattern']} would break the pattern; put {name} first, or insist with "
            "`merge: [dense]` between them, which gives the zeros up."
        )


def refuse_patterns(model: Model, name: str) -> None:
    """The same of a model in memory."""
    pattern = next(iter(model.patterns.values()), None)
    refuse_pattern(Outlook(None, {"pattern": f"prune {pattern}"} if pattern else {}), name)


def keep_inputs(model: Model, name: str, layer: Any, stay: torch.Tensor) -> None:
    """Keep the inputs `stay` (indices, ascending) of one linear layer, and of its mask."""
    _cut(layer, stay, inputs=True)
    if name in model.masks:
        model.masks[name] = model.masks[name].index_select(1, stay)


def keep_outputs(model: Model, name: str, layer: Any, stay: torch.Tensor) -> None:
    """Keep the outputs `stay` (indices, ascending) of one linear layer, of its bias and of its mask."""
    import torch

    _cut(layer, stay, inputs=False)
    if layer.bias is not None:
        layer.bias = torch.nn.Parameter(layer.bias.data.index_select(0, stay))
    if name in model.masks:
        model.masks[name] = model.masks[name].index_select(0, stay)


def _cut(layer: Any, stay: torch.Tensor, *, inputs: bool) -> None:
    import torch
    from transformers.pytorch_utils import Conv1D

    is_conv = isinstance(layer, Conv1D)  # GPT-2 keeps its weights as (inputs, outputs).
    layer.weight = torch.nn.Parameter(layer.weight.data.index_select(1 if inputs != is_conv else 0, stay))
    if is_conv:
        layer.nx, layer.nf = layer.weight.shape
    else:
        layer.out_features, layer.in_features = layer.weight.shape
