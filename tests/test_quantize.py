"""Rounding against a loop, its bounds, and what every quantizer keeps: zeros, patterns, the order of steps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from leanwatt import catalog
from leanwatt.errors import RefusedError
from leanwatt.model import linears, load, weight_of
from leanwatt.quantize._codes import nearest_codes, round_to
from leanwatt.recipe import Choice

QUANTIZERS: dict[str, dict[str, Any]] = {
    "round_to_nearest": {"bits": 4},
    "gptq": {"bits": 4},
    "awq": {"bits": 4},
    "smoothquant": {"bits": 8},
    "nf4": {},
}
"""Every method that makes codes, with its settings besides the group."""
WEIGHTS = arrays.arrays("float32", (3, 8), elements=st.floats(-8, 8, width=32))


def slow_codes(weight: Any, bits: int, group: int) -> tuple[Any, Any]:
    """One weight after the other."""
    half = 2 ** (bits - 1)
    size = group if group and weight.shape[1] % group == 0 else weight.shape[1]
    codes, scales = np.zeros(weight.shape, int), []
    for r, row in enumerate(weight):
        for start in range(0, len(row), size):
            top = max(abs(np.float32(value)) for value in row[start : start + size])
            scale = np.float32(np.float16(max(np.float32(top) / np.float32(half - 0.5), np.float32(1e-7))))
            scales.append(scale)
            for i in range(start, start + size):
                codes[r, i] = max(-half, min(half - 1, int(np.round(np.float32(row[i]) / scale))))
    return codes, np.array(scales).reshape(len(weight), -1)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [0, 2, 4, 8, 3])
@given(weight=WEIGHTS)
@settings(max_examples=25, deadline=None)
def test_codes_are_those_of_a_loop(bits: int, group: int, weight: Any) -> None:
    import torch

    got = nearest_codes(torch.from_numpy(weight), bits, group)
    codes, scales = slow_codes(weight, bits, group)
    assert (got.codes.numpy() == codes).all()
    assert (got.scales.numpy() == scales).all()
    assert got.bits == bits


@pytest.mark.parametrize("bits", [8, 4])
@given(weight=WEIGHTS)
@settings(max_examples=50, deadline=None)
def test_the_error_is_half_a_step_zeros_are_zero_and_codes_fit(bits: int, weight: Any) -> None:
    import torch

    weight = np.where(np.abs(weight) < 1e-3, 0, weight).astype("float32")
    codes = nearest_codes(torch.from_numpy(weight), bits, 4)
    step = codes.scales.numpy().repeat(4, axis=1)
    error = np.abs(codes.weight.numpy() - weight)
    half = 2 ** (bits - 1)
    # The scale is rounded to 16 bits, so the largest weight may miss its code by that much; tiny ones more.
    assert (error <= step * 0.5 + half * np.maximum(step * 2**-11, 2**-25) + 1e-9).all()
    assert not codes.weight.numpy()[weight == 0].any()
    assert -half <= codes.codes.numpy().min() and codes.codes.numpy().max() < half


def test_more_bits_and_smaller_groups_err_less() -> None:
    import torch

    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    error = {
        (bits, group): float((nearest_codes(weight, bits, group).weight - weight).norm())
        for bits, group in ((8, 0), (4, 64), (4, 16))
    }
    assert error[8, 0] < error[4, 16] / 10
    assert error[4, 16] < error[4, 64]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_module_holds_the_values_of_the_codes(
    family: str, dtype: str, saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    import torch

    from leanwatt.model import cast

    model = load(saved(family))
    cast(model.module, getattr(torch, dtype))
    catalog.build(Choice("quantize", "round_to_nearest", {"bits": 4, "group": 16})).apply(model, context)
    assert model.codes.keys() == linears(model.module).keys()
    for name, layer in linears(model.module).items():
        assert weight_of(layer).equal(model.codes[name].weight.to(weight_of(layer).dtype))
        assert model.codes[name].scales.shape[1] == weight_of(layer).shape[1] // 16
    model.save(tmp_path / "variant")
    again = load(tmp_path / "variant")
    for name, codes in again.codes.items():
        assert codes.codes.equal(model.codes[name].codes)
        assert codes.scales.equal(model.codes[name].scales)
        assert codes.bits == 4


def test_a_group_that_does_not_divide_is_a_scale_per_row(saved: Callable[[str], Path], context: Any) -> None:
    model = catalog.build(Choice("quantize", "round_to_nearest", {"bits": 8, "group": 48})).apply(
        load(saved("llama")), context
    )
    assert {codes.scales.shape[1] for codes in model.codes.values()} == {1}


def quantizer(name: str, **settings_: Any) -> Any:
    return catalog.build(Choice("quantize", name, QUANTIZERS[name] | settings_))


def pruned(folder: Path, context: Any, **settings_: Any) -> Any:
    return catalog.build(Choice("prune", "magnitude", settings_)).apply(load(folder), context)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("cut", [{"sparsity": 0.6}, {"pattern": "2:4"}])
def test_zeros_and_patterns_stay(
    name: str, family: str, cut: dict[str, Any], *, saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    model = pruned(saved(family), context, **cut)
    masks = {layer: mask.clone() for layer, mask in model.masks.items()}
    quantizer(name, group=0 if family == "gpt2" else 16).apply(model, context)
    model.save(tmp_path / "variant")
    again = load(tmp_path / "variant")
    assert again.codes.keys() == again.masks.keys() == masks.keys()
    for layer, module in linears(again.module).items():
        codes, mask, weight = again.codes[layer], masks[layer], weight_of(module)
        assert again.masks[layer].equal(mask)
        assert not codes.codes[~mask].any()
        assert not weight[~mask].any()
        assert codes.codes[mask].float().abs().mean() > 1, "what stayed has not gone too"
        assert weight.equal(codes.weight)
        if "pattern" in cut:
            assert again.patterns[layer] == "2:4"
            assert int((weight != 0).reshape(len(weight), -1, 4).sum(-1).max()) <= 2


@given(weight=WEIGHTS, seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_a_zero_is_code_zero_however_codes_are_found(weight: Any, seed: int) -> None:
    import torch

    from leanwatt.quantize._ranges import cut_scales
    from leanwatt.quantize.gptq import Gptq
    from leanwatt.quantize.nf4 import nearest_levels

    dice = torch.Generator().manual_seed(seed)
    given_, x = torch.from_numpy(weight), torch.randn(30, 8, generator=dice)
    given_ = given_ * (torch.rand(given_.shape, generator=dice) < 0.5)
    gram = x.t() @ x
    for group in (0, 4):
        found = [
            nearest_codes(given_, 4, group),
            round_to(given_, cut_scales(given_, gram, 4, group), 4),
            Gptq(4, group).codes(given_, gram, "layer"),
            Gptq(8, group, order="inputs", cut=False).codes(given_, gram, "layer"),
            nearest_levels(given_, group),
        ]
        for codes in found:
            assert not codes.codes[given_ == 0].any()
            assert not codes.weight[given_ == 0].any()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_orders_that_would_break_codes_are_refused(name: str, saved: Callable[[str], Path], context: Any) -> None:
    adapted = catalog.build(Choice("finetune", "lora", {"rank": 2})).apply(load(saved("llama")), context)
    with pytest.raises(RefusedError, match=f"quantize {name}: .*merge"):
        quantizer(name).apply(adapted, context)
    model = quantizer(name).apply(load(saved("llama")), context)
    with pytest.raises(RefusedError, match=f"quantize {name}: .*already"):
        quantizer(name).apply(model, context)
    for room, method in (("prune", {"magnitude": {"sparsity": 0.5}}), ("finetune", "full")):
        with pytest.raises(RefusedError, match=r"prune .* after quantize would|put it before"):
            catalog.build(Choice.parse(room, method)).apply(model, context)


@pytest.mark.parametrize("name", ["gptq", "awq", "smoothquant"])
def test_calibration_can_read_plain_text(name: str, saved: Callable[[str], Path], context: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("alarm first at site A then power lost " * 200, encoding="utf-8")
    step = quantizer(name, text=str(text), examples=4)
    assert step.files() == [text]
    assert quantizer(name).files() == []
    on_text = step.apply(load(saved("llama")), replace(context, train=[]))
    on_tickets = quantizer(name).apply(load(saved("llama")), context)
    assert any(
        not on_text.codes[layer].scales.equal(on_tickets.codes[layer].scales)
        or not on_text.codes[layer].codes.equal(on_tickets.codes[layer].codes)
        for layer in on_text.codes
    )


@pytest.mark.parametrize("name", ["gptq", "awq", "smoothquant"])
def test_the_same_seed_gives_the_same_codes(name: str, saved: Callable[[str], Path], context: Any) -> None:
    first, second = (quantizer(name, examples=5).apply(load(saved("gpt2")), context) for _ in range(2))
    for layer, codes in first.codes.items():
        assert codes.codes.equal(second.codes[layer].codes)
        assert codes.scales.equal(second.codes[layer].scales)


def test_weights_that_are_no_numbers_are_not_kept(saved: Callable[[str], Path], context: Any) -> None:
    model = load(saved("llama"))
    weight_of(linears(model.module)["model.layers.1.mlp.up_proj"])[0, 0] = float("inf")
    with pytest.raises(RefusedError, match=r"model\.layers\.1\.mlp\.up_proj: .*no finite numbers in torch.float32"):
        quantizer("round_to_nearest").apply(model, context)
