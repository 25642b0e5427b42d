"""Scales that move from a layer's weights into what feeds it: the same function, in numbers that are easier to round.

`y = W x = (W diag(s)) (x / s)`: where x comes out of a norm or of another linear layer, the division goes into its
weights, and the model stays one that plain transformers opens. Only where that is exact: behind a norm that nothing
else reads, from the values of attention to its output, and through an MLP along its linear branch or its ReLU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leanwatt.calibration import Batch, Visit
from leanwatt.errors import RefusedError
from leanwatt.model import FAMILIES, Model, blocks, weight_of

if TYPE_CHECKING:
    import torch

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj")
_NORMS = {
    "input_layernorm": (*_QKV, "attention.query_key_value", "mlp.fc1"),  # Phi's MLP reads what its attention reads.
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj", "mlp.dense_h_to_4h"),
    "pre_feedforward_layernorm": ("mlp.gate_proj", "mlp.up_proj"),  # Gemma 2 and 3.
    "ln_1": ("attn.c_attn",),
    "ln_2": ("mlp.c_fc",),
    "self_attn_layer_norm": _QKV,
    "final_layer_norm": ("fc1",),
}
"""A norm in a block, and the linear layers that read it: those of them that the block has."""
_LINEARS = {
    "self_attn.v_proj": ("self_attn.o_proj", "self_attn.out_proj", "self_attn.dense"),
    "self_attn.qkv_proj": ("self_attn.o_proj",),
    "attn.c_attn": ("attn.c_proj",),
    "attention.query_key_value": ("attention.dense",),
    "mlp.up_proj": ("mlp.down_proj",),
    "mlp.gate_up_proj": ("mlp.down_proj",),
    "fc1": ("fc2",),
}
"""A linear layer, and the one that its outputs reach only multiplied: by attention, by a gate, or by a ReLU."""
TOLERANCE = 0.03
"""Relative change of a block's output above which a fold was wrong: bf16 rounds by 0.01, a wrong fold by 1."""


@dataclass(frozen=True, eq=False)
class Fold:
    """A place for scales: what divides, and the layers that multiply."""

    source: Any
    """A norm or a linear layer."""
    rows: torch.Tensor
    """int64, (features,): which output of the source each input feature of the layers is."""
    layers: tuple[str, ...]
    """Full names."""
    name: str | None = None
    """Full name of the source where it is a linear layer."""

    def tied(self, statistic: torch.Tensor) -> torch.Tensor:
        """A statistic of the features, (features,), with its largest value wherever features share an output."""
        import torch

        outputs = torch.zeros(int(self.rows.max()) + 1)
        return outputs.scatter_reduce_(0, self.rows, statistic.float(), "amax")[self.rows]


def refuse_without_norms(model: Model, method: str) -> None:
    """Raise RefusedError for a family whose norms stand elsewhere than before the layers, before any work is done."""
    for block in blocks(model.module):
        parts = dict(block.named_modules())
        if not any(True for _ in _norms(block, parts)):
            raise RefusedError(
                f"quantize {method}: no norm of {type(block).__name__} feeds linear layers only, so there is nowhere "
                f"to put its scales. It works for pre-norm models of {FAMILIES}; use gptq here."
            )


def folds_of(visit: Visit) -> list[Fold]:
    """Every place for scales in a block, norms first."""
    import torch

    parts = dict(visit.block.named_modules())
    names = {id(layer): name for name, layer in visit.layers.items()}
    found = []
    for norm, readers in _norms(visit.block, parts):
        rows = torch.arange(len(parts[norm].weight))
        found.append(Fold(parts[norm], rows, tuple(names[id(parts[reader])] for reader in readers)))
    for source, reader in _linears(visit.block, parts):
        rows = _rows(source, parts, weight_of(parts[reader]).shape[1])
        found.append(Fold(parts[source], rows, (names[id(parts[reader])],), names[id(parts[source])]))
    return found


def _norms(block: Any, parts: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    for norm, readers in _NORMS.items():
        there = [reader for reader in readers if reader in parts]
        # OPT of 350 million parameters has its norms behind, where the residual reads them; Gemma 2 has one there.
        is_before = getattr(block, "do_layer_norm_before", True)
        is_behind = norm == "post_attention_layernorm" and "pre_feedforward_layernorm" in parts
        has_weight = getattr(parts.get(norm), "weight", None) is not None
        if has_weight and there and is_before and not is_behind:
            yield norm, there


def _linears(block: Any, parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from torch import nn

    for source, readers in _LINEARS.items():
        for reader in readers:
            is_bent = source == "fc1" and not isinstance(getattr(block, "activation_fn", None), nn.ReLU)
            if source in parts and reader in parts and not is_bent:
                yield source, reader


def _rows(source: str, parts: Mapping[str, Any], features: int) -> torch.Tensor:
    """Which output of `source` each of the features is: values are packed, and shared by heads, as families do it."""
    import torch

    outputs, at = len(weight_of(parts[source])), torch.arange(features)
    attention: Any = parts.get(source.rpartition(".")[0])
    if source == "attention.query_key_value":  # Query, key and value of a head, then of the next.
        size = int(attention.head_size)
        return at // size * 3 * size + 2 * size + at % size
    if source in ("self_attn.v_proj", "self_attn.qkv_proj"):  # Neighbouring heads share the values of one.
        size = int(attention.head_dim)
        values = outputs if source.endswith(".v_proj") else (outputs - features) // 2
        shared = size * features // values
        return outputs - values + at // shared * size + at % size
    return outputs - features + at  # The last ones: values behind queries and keys, up behind gate.


def fold(visit: Visit, chosen: Sequence[tuple[Fold, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Move scales, (features,) each and above 0, in place; gives the layers' new weights, float32 and not rounded.

    Raises RefusedError where that changes what the block computes.
    """
    batch = visit.batches[0]
    before = visit.outputs(batch)
    weights = {name: weight_of(layer).float().clone() for name, layer in visit.layers.items()}
    for each, scale in chosen:
        divided = _divide(each, scale, weights)
        for name in each.layers:
            weights[name].mul_(divided)
    for name, layer in visit.layers.items():
        weight_of(layer).copy_(weights[name])
    _refuse_changed(visit, batch, before)
    return weights


def _divide(each: Fold, scale: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Divide the source's outputs; by how much it truly is, (features,)."""
    import torch

    if each.name is None:
        return _divide_norm(each.source, scale)
    divisor = torch.ones(len(weights[each.name])).scatter_(0, each.rows, scale)
    weights[each.name].div_(divisor.unsqueeze(1))
    _divide_bias(each.source, divisor)
    return scale


def _divide_norm(norm: Any, scale: torch.Tensor) -> torch.Tensor:
    """A norm's weight is rounded to its dtype: what it then divides by is what the layers must multiply by."""
    import torch

    offset = _offset(norm)
    gain = norm.weight.data.float() + offset
    divided = (gain / scale - offset).to(norm.weight.dtype)
    is_lost = gain * (divided.float() + offset) <= 0  # Nothing to divide, or nothing left of it.
    norm.weight.data.copy_(torch.where(is_lost, norm.weight.data, divided))
    truly = torch.where(is_lost, 1.0, gain / (norm.weight.data.float() + offset))
    _divide_bias(norm, truly)
    return truly


def _divide_bias(source: Any, divisor: torch.Tensor) -> None:
    if getattr(source, "bias", None) is not None:
        source.bias.data.copy_(source.bias.data.float() / divisor)


def _offset(norm: Any) -> float:
    """What a norm adds to its weight before it multiplies: 1 in Gemma's, 0 in others."""
    import torch

    zeros = {name: torch.zeros_like(each) for name, each in norm.named_parameters()}
    signs = torch.ones_like(norm.weight)
    signs[1::2] = -1
    with torch.inference_mode():
        return float(torch.func.functional_call(norm, zeros, (signs,)).abs().max().round())


def _refuse_changed(visit: Visit, batch: Batch, before: torch.Tensor) -> None:
    import torch

    error = (visit.outputs(batch) - before).float().norm()
    added = (before - batch.hidden).float().norm()
    rounding = torch.finfo(before.dtype).eps * before.float().norm()
    if not error <= TOLERANCE * added + rounding:
        raise RefusedError(
            f"{type(visit.block).__name__}: moving scales into its norms changes what it computes (by {error:.2g} of "
            f"{added:.2g}), so its parts are put together in a way that is not known here. Use gptq instead."
        )
