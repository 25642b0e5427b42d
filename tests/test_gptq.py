"""GPTQ against brute force: one weight at a time, the inverse of what is left taken anew; and that it errs less."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st

from leanwatt import catalog
from leanwatt.calibration import sample, stages
from leanwatt.errors import RefusedError
from leanwatt.model import Model, linears, load, weight_of
from leanwatt.quantize._codes import nearest_codes, round_to
from leanwatt.quantize._ranges import CUTS, cut_scales, diagonal_blocks, in_blocks, output_errors
from leanwatt.quantize.gptq import Gptq
from leanwatt.recipe import Choice


def inputs_of(tokens: int, features: int, seed: int = 0) -> Any:
    """Inputs of which some are alike, and some far larger, as real ones are."""
    import torch

    dice = torch.Generator().manual_seed(seed)
    mixed = torch.randn(features, features, generator=dice) * torch.linspace(0.1, 3, features)
    return torch.randn(tokens, features, generator=dice) @ mixed


def slow_codes(weight: Any, gram: Any, scales: Any, bits: int, order: list[int]) -> Any:
    """Optimal brain quantization in a given order, in float64; a weight that is zero is settled at zero."""
    import torch

    work, codes = weight.double().clone(), torch.zeros(weight.shape)
    damped = gram.double() + 0.01 * gram.double().diagonal().mean() * torch.eye(len(gram))
    size, half = weight.shape[1] // scales.shape[1], 2 ** (bits - 1)
    for place, column in enumerate(order):
        left = order[place:]
        inverse = torch.linalg.inv(damped[left][:, left])
        for row in range(len(work)):
            scale = float(scales[row, column // size])
            code = max(-half, min(half - 1, round(float(work[row, column]) / scale)))
            codes[row, column] = 0 if weight[row, column] == 0 else code
            error = work[row, column] - codes[row, column] * scale
            work[row, left] -= error / inverse[0, 0] * inverse[0]
    return codes


@given(
    rows=st.integers(1, 4),
    groups=st.integers(1, 3),
    size=st.sampled_from([2, 5, 8, 16]),
    step=st.tuples(st.sampled_from([8, 4]), st.sampled_from(["inputs", "activation"])),
    sparsity=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=40)
def test_codes_and_weights_are_those_of_brute_force(
    *, rows: int, groups: int, size: int, step: Any, sparsity: float, seed: int
) -> None:
    import torch

    bits, order = step
    columns, dice = groups * size, torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=dice)
    weight *= torch.rand(rows, columns, generator=dice) >= sparsity
    x = inputs_of(3 * columns + 4, columns, seed)
    gram = x.t() @ x
    got = Gptq(bits, size, order=order, cut=False).codes(weight, gram, "layer")
    places = list(range(columns))
    if order == "activation":
        places.sort(key=lambda i: -float(gram[i, i]))
    expected = slow_codes(weight, gram, got.scales, bits, places)
    assert got.codes.float().equal(expected)
    assert got.scales.equal(nearest_codes(weight, bits, size).scales)
    whole = expected.view(rows, groups, size) * got.scales.unsqueeze(-1)
    assert torch.allclose(got.weight, whole.view(rows, columns), atol=1e-4)
    assert not got.codes[weight == 0].any()


@given(bits=st.sampled_from([8, 4]), group=st.sampled_from([4, 8, 0]), seed=st.integers(0, 2**16))
@settings(deadline=None, max_examples=30)
def test_ranges_are_the_best_of_those_tried_in_every_group(bits: int, group: int, seed: int) -> None:
    import torch

    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(seed))
    x = inputs_of(60, 16, seed).double()
    got = cut_scales(weight, (x.t() @ x).float(), bits, group)
    whole = nearest_codes(weight, bits, group).scales
    size = 16 // whole.shape[1]

    def error(scale: Any, row: int, place: slice) -> float:
        part = weight[row : row + 1, place]
        change = round_to(part, scale.view(1, 1), bits).weight - part
        return float((x[:, place] @ change[0].double()).square().sum())

    for row in range(3):
        for i in range(whole.shape[1]):
            place = slice(i * size, (i + 1) * size)
            tried = [(whole[row, i] * share).half().float() for share in CUTS]
            least = min(error(scale, row, place) for scale in tried)
            assert error(got[row, i], row, place) <= least * 1.001 + 1e-9


def test_blocks_of_wide_rows_are_small_and_add_up() -> None:
    import torch

    x = inputs_of(400, 512)
    gram = x.t() @ x
    blocks = diagonal_blocks(gram, 512)
    assert blocks.shape == (4, 128, 128)
    change = torch.zeros(2, 512)
    change[:, 130:200] = torch.randn(2, 70, generator=torch.Generator().manual_seed(0))
    errors = output_errors(in_blocks(change, 4), blocks)
    assert errors.shape == (4, 2)
    assert torch.allclose(errors.sum(0), (change @ x.t()).square().sum(1), rtol=1e-3)
    assert not errors[[0, 2, 3]].any()
    assert diagonal_blocks(gram, 64, 8).shape == (64, 8, 8)
    assert diagonal_blocks(gram[:15, :15], 5, 2).shape == (3, 5, 5)


def layer_errors(model: Model, on: Any, context: Any, bits: Any, group: int) -> list[dict[str, float]]:
    """Of every stage of a model that stays as it is: what each way of rounding changes in the outputs."""
    import torch

    found = []
    for stage in stages(model, on, context):
        x = torch.cat([inputs.float() for inputs in stage.inputs()])
        weight = torch.cat([weight_of(layer).float() for layer in stage.layers.values()])
        gram = x.t() @ x
        cut = round_to(weight, cut_scales(weight, gram, bits, group), bits)
        ways = {
            "nearest": nearest_codes(weight, bits, group),
            "nearest, cut": cut,
            "gptq, not cut": Gptq(bits, group, cut=False).codes(weight, gram, "layer"),
            "gptq": Gptq(bits, group).codes(weight, gram, "layer"),
            "gptq, as they stand": Gptq(bits, group, order="inputs").codes(weight, gram, "layer"),
        }
        found.append({way: float(((codes.weight - weight) @ x.t()).norm()) for way, codes in ways.items()})
    return found


def assert_order(errors: list[dict[str, float]]) -> None:
    assert errors
    for each in errors:
        assert each["gptq"] < each["nearest"]
        assert each["gptq, not cut"] < each["nearest"]
        assert each["gptq, as they stand"] < each["nearest"]
        assert each["nearest, cut"] < each["nearest"] * 1.001


@pytest.mark.parametrize("group", [0, 16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_err_less_than_by_rounding(
    family: str, group: int, saved: Callable[[str], Path], context: Any
) -> None:
    model = load(saved(family))
    assert_order(layer_errors(model, sample(model, context, 1000), context, 4, group))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["stories260k", "tinystories-656k"])
def test_the_layers_of_trained_models_err_less_than_by_rounding(
    name: str, bits: int, shared: Path, context: Any
) -> None:
    model = load(shared / "models" / name)
    errors = layer_errors(model, sample(model, context, 1000), context, bits, 32)
    for each in errors:
        assert each["gptq"] < each["nearest"]
    if bits == 4:
        assert_order(errors)


def test_layers_settled_together_are_what_they_are_alone() -> None:
    import torch

    dice, x = torch.Generator().manual_seed(0), inputs_of(200, 24)
    first, second = torch.randn(5, 24, generator=dice), torch.randn(7, 24, generator=dice)
    step, gram = Gptq(4, 8), x.t() @ x
    both = step.codes(torch.cat([first, second]), gram, "both")
    for weight, rows in ((first, slice(0, 5)), (second, slice(5, 12))):
        alone = step.codes(weight, gram, "alone")
        assert (both.codes[rows] != alone.codes).float().mean() < 0.02  # Products of another shape round otherwise.
        assert both.scales[rows].equal(alone.scales)


def test_inputs_that_are_never_active_are_rounded() -> None:
    import torch

    x = inputs_of(100, 16)
    x[:, 3] = 0
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    codes = Gptq(4, 0, cut=False).codes(weight, x.t() @ x, "layer")
    assert codes.codes[:, 3].equal(nearest_codes(weight, 4, 0).codes[:, 3])


def test_activations_that_are_no_numbers_name_the_layer(saved: Callable[[str], Path], context: Any) -> None:
    model = load(saved("llama"))
    model.module.model.layers[1].input_layernorm.weight.data[0] = float("nan")
    with pytest.raises(RefusedError, match=r"model\.layers\.1\.self_attn\.q_proj and .*v_proj: .*NaN"):
        catalog.build(Choice("quantize", "gptq", {"bits": 4})).apply(model, context)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_makes_up_for_what_came_before(family: str, saved: Callable[[str], Path], context: Any) -> None:
    """The codes of a layer are those for what enters it in the quantized model, not in the one before."""
    import torch

    step = Gptq(4, 16)
    model = step.apply(load(saved(family)), context)
    whole = load(saved(family))
    name = list(linears(model.module))[-1]
    assert (model.codes[name].codes != _codes_for(step, whole, whole, name, context)).any()
    expected = _codes_for(step, model, whole, name, context)
    assert (model.codes[name].codes != expected).float().mean() < 0.02
    assert torch.is_grad_enabled()
    assert model.history == ["quantize gptq 4 bits, group 16, by activation"]


def _codes_for(step: Gptq, seen_in: Model, whole: Model, name: str, context: Any) -> Any:
    from test_calibration import slow_inputs

    x = slow_inputs(seen_in, linears(seen_in.module)[name], context)
    return step.codes(weight_of(linears(whole.module)[name]).float(), x.t() @ x, name).codes
