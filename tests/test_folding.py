"""Scales moved into norms and linear layers: the same logits, in every family, and the scales that the papers say."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import tiny_module

from leanwatt import catalog
from leanwatt.calibration import sample, walk
from leanwatt.errors import RefusedError
from leanwatt.lesson import Lesson
from leanwatt.model import Model, cast, linears, load, weight_of
from leanwatt.quantize import _folding
from leanwatt.quantize._codes import nearest_codes
from leanwatt.quantize._folding import fold, folds_of
from leanwatt.recipe import Choice

SCALED = {
    "llama": 14,
    "mistral": 14,
    "qwen2": 14,
    "qwen3": 14,
    "gemma": 14,
    "gemma2": 14,
    "gemma3_text": 14,
    "smollm3": 14,
    "phi3": 8,
    "opt": 12,
    "phi": 10,  # Not fc2, behind GELU.
    "gpt2": 6,  # Not mlp.c_proj.
    "gpt_neox": 6,  # Not dense_4h_to_h.
}
"""How many of the layers of two blocks have a place for scales."""
ON = [Lesson(tuple(range(3, 40)), 0), Lesson(tuple(range(50, 75)), 0)]
PLAIN = SimpleNamespace(progress=lambda _text, _share: None, stage=nullcontext)


def lively(family: str) -> Model:
    """A tiny model whose norms and biases are not all ones and zeros."""
    import torch

    module, dice = tiny_module(family), torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter.data += torch.rand(parameter.shape, generator=dice) / 2
    return Model(module, SimpleNamespace(pad_token_id=2))


def logits(model: Model) -> Any:
    import torch

    with torch.inference_mode():
        return model.module(torch.arange(3, 60)[None]).logits.float()


def fold_at_random(model: Model) -> int:
    import torch

    dice, count = torch.Generator().manual_seed(2), 0
    for visit in walk(model, ON, PLAIN):
        folds = folds_of(visit)
        fold(visit, [(each, each.tied(torch.rand(len(each.rows), generator=dice) * 4 + 0.1)) for each in folds])
        count += sum(len(each.layers) for each in folds)
    return count


@pytest.mark.parametrize("family", SCALED)
def test_without_rounding_the_folded_model_computes_the_same(family: str) -> None:
    model = lively(family)
    before = logits(model)
    weights = {name: weight_of(layer).clone() for name, layer in linears(model.module).items()}
    assert fold_at_random(model) == SCALED[family]
    assert logits(model).numpy() == pytest.approx(before.numpy(), abs=2e-5)
    moved = [name for name, layer in linears(model.module).items() if not weight_of(layer).equal(weights[name])]
    assert len(moved) >= SCALED[family]


def test_only_a_relu_lets_scales_pass() -> None:
    from torch import nn

    model = lively("opt")
    before = logits(model)
    for block in model.module.model.decoder.layers:
        block.activation_fn = nn.GELU()
    assert not logits(model).equal(before)
    assert fold_at_random(model) == SCALED["opt"] - 2


def test_in_bf16_the_layers_multiply_by_what_the_norm_truly_divides_by() -> None:
    """Rounding the norm's weight would else put an error of half a percent on every feature."""
    import torch

    norm = torch.nn.RMSNorm(64).to(torch.bfloat16)
    norm.weight.data += torch.rand(64, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = norm.weight.data.float().clone()
    wanted = torch.rand(64, generator=torch.Generator().manual_seed(1)) * 5 + 0.1
    truly = _folding._divide_norm(norm, wanted)
    assert torch.allclose(norm.weight.data.float() * truly, before, rtol=1e-6)
    assert not truly.equal(wanted)
    assert torch.allclose(truly, wanted, rtol=0.01)


def test_a_gain_of_zero_is_left_alone() -> None:
    import torch

    norm = torch.nn.LayerNorm(4)
    norm.weight.data[1], norm.bias.data[:] = 0, 1
    truly = _folding._divide_norm(norm, torch.full((4,), 2.0))
    assert truly.tolist() == [2, 1, 2, 2]
    assert norm.weight.tolist() == [0.5, 0, 0.5, 0.5]
    assert norm.bias.tolist() == [0.5, 1, 0.5, 0.5]


def test_a_place_that_does_not_exist_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family whose parts have known names and are put together in another way."""
    monkeypatch.setattr(_folding, "_NORMS", {"input_layernorm": ("self_attn.q_proj",)})
    with pytest.raises(RefusedError, match=r"LlamaDecoderLayer: moving scales .* changes what it computes"):
        fold_at_random(lively("llama"))


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_norms_behind_the_layers_are_refused_before_any_work(
    method: str, saved: Callable[[str], Path], context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    model = load(saved("opt"))
    for layer in model.module.model.decoder.layers:
        layer.do_layer_norm_before = False
    monkeypatch.setattr(f"leanwatt.quantize.{method}.walk", None)
    with pytest.raises(RefusedError, match=rf"quantize {method}: no norm of OPTDecoderLayer .* use gptq"):
        catalog.build(Choice("quantize", method, {"bits": 4})).apply(model, context)
    assert torch.is_grad_enabled()


def slow_inputs(model: Model, context: Any) -> dict[str, Any]:
    """What enters each layer of the first block, all tokens of all examples, unpadded."""
    import torch

    found: dict[str, list[Any]] = {}
    layers = {name: layer for name, layer in linears(model.module).items() if ".0." in name}
    hooks = [
        layer.register_forward_pre_hook(lambda _m, args, n=name: found.setdefault(n, []).append(args[0][0].detach()))
        for name, layer in layers.items()
    ]
    with torch.inference_mode():
        for lesson in sample(model, context, 1000):
            model.module(torch.tensor([lesson.ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(each) for name, each in found.items()}


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.8])
def test_smoothquant_divides_by_the_formula_of_the_paper(
    strength: float, saved: Callable[[str], Path], context: Any
) -> None:
    model, name = load(saved("llama")), "model.layers.0.self_attn.q_proj"
    inputs = slow_inputs(model, context)[name]
    first = model.module.model.layers[0]
    readers = [first.self_attn.q_proj, first.self_attn.k_proj, first.self_attn.v_proj]
    expected = []
    for feature in range(32):
        largest = max(float(abs(x)) for x in inputs[:, feature])
        heaviest = max(float(abs(w)) for layer in readers for w in weight_of(layer)[:, feature])
        expected.append(largest**strength / heaviest ** (1 - strength))
    gain, weight = first.input_layernorm.weight.detach().clone(), weight_of(readers[0]).clone()
    catalog.build(Choice("quantize", "smoothquant", {"strength": strength})).apply(model, context)
    scale = gain / first.input_layernorm.weight.detach()
    assert scale.numpy() == pytest.approx(expected, rel=1e-3)
    assert model.codes[name].codes.equal(nearest_codes(weight * scale, 8, 0).codes)
    assert model.history == [f"quantize smoothquant 8 bits, group 0, strength {strength}"]


@pytest.mark.parametrize("group", [0, 16])
def test_awq_takes_the_power_with_the_least_output_error(
    group: int, saved: Callable[[str], Path], context: Any
) -> None:
    """The slow way: really multiply the activations, power after power."""
    model, name = load(saved("llama")), "model.layers.0.mlp.down_proj"
    model.module.model.layers[0].mlp.up_proj.weight.data[:4] *= 30
    inputs, weight = slow_inputs(model, context)[name], weight_of(linears(model.module)[name]).clone()
    mean = inputs.abs().mean(0)
    errors = {}
    for power in range(10):
        scale = (mean / mean.max()).clamp(min=1e-4) ** (power / 10)
        scale = scale / (scale.max() * scale.min()) ** 0.5
        rounded = nearest_codes(weight * scale, 4, group).weight / scale
        errors[float(((rounded - weight) @ inputs.t()).norm())] = scale
    step = catalog.build(Choice("quantize", "awq", {"bits": 4, "group": group, "powers": 10, "cut": False}))
    step.apply(model, context)
    expected = nearest_codes(weight * errors[min(errors)], 4, group)
    assert (model.codes[name].codes != expected.codes).float().mean() < 0.002  # Sums are taken in another order.
    assert model.codes[name].scales.numpy() == pytest.approx(expected.scales.numpy(), rel=2e-3)
    assert min(errors) < float(((nearest_codes(weight, 4, group).weight - weight) @ inputs.t()).norm())


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_at_eight_bits_the_model_is_nearly_the_same(
    method: str, dtype: str, family: str, saved: Callable[[str], Path], context: Any
) -> None:
    import torch

    model = load(saved(family))
    cast(model.module, getattr(torch, dtype))
    before = logits(model)
    catalog.build(Choice("quantize", method, {"bits": 8})).apply(model, context)
    error = (logits(model) - before).norm() / before.norm()
    assert error < {"float32": 0.01, "bfloat16": 0.03}[dtype]
    assert next(model.module.parameters()).dtype == getattr(torch, dtype)


def test_awq_says_how_many_layers_have_scales(saved: Callable[[str], Path], context: Any) -> None:
    model = catalog.build(Choice("quantize", "awq", {"bits": 4})).apply(load(saved("gpt2")), context)
    assert model.history == ["quantize awq 4 bits, group 64, 6 of 8 layers scaled"]
