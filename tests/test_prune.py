"""Pruning against brute force: exactly the weights, neurons and blocks that ought to go, and no others."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from leanwatt import catalog
from leanwatt.errors import RefusedError
from leanwatt.model import blocks, linears, load, weight_of
from leanwatt.prune._masking import n_of_m, parse_pattern, unstructured
from leanwatt.recipe import Choice

SCORES = st.floats(0, 100, width=32)


def scores(rows: int, columns: int) -> st.SearchStrategy[Any]:
    return arrays.arrays("float32", (rows, columns), elements=SCORES)


def step(name: str, **settings_: Any) -> Any:
    return catalog.build(Choice("prune", name, settings_))


@given(
    st.integers(1, 5).flatmap(lambda rows: st.integers(1, 12).flatmap(lambda columns: scores(rows, columns))),
    st.floats(0, 1),
)
@settings(deadline=None)
def test_exactly_the_share_goes_and_nothing_larger_than_what_stays(score: Any, sparsity: float) -> None:
    import torch

    mask = unstructured(torch.from_numpy(score), sparsity).numpy()
    assert mask.shape == score.shape
    assert (~mask).sum() == round(sparsity * score.size)
    if mask.any() and not mask.all():
        assert score[~mask].max() <= score[mask].min()


@given(st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (4, 8)]), st.data())
@settings(deadline=None)
def test_n_of_m_keeps_the_best_set_of_every_group(pattern: tuple[int, int], data: st.DataObject) -> None:
    import torch

    kept, group = pattern
    score = data.draw(scores(2, 2 * group))
    mask = n_of_m(torch.from_numpy(score), kept, group).numpy()
    for row, chosen in zip(score.reshape(-1, group), mask.reshape(-1, group), strict=True):
        assert chosen.sum() == kept
        best = max(sum(float(row[i]) for i in each) for each in combinations(range(group), kept))
        assert sum(float(value) for value in row[chosen]) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("wrong", ["", "2", "2:", ":4", "4:2", "2:2", "0:4", "2:4:8", "a:b", "2-4", "-2:4", "1.5:4"])
def test_what_is_no_pattern(wrong: str) -> None:
    with pytest.raises(ValueError, match="N:M"):
        parse_pattern(wrong)


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
def test_a_group_that_does_not_divide_is_refused_before_any_work(
    name: str, saved: Callable[[str], Path], context: Any
) -> None:
    model = load(saved("llama"))
    before = {layer: weight_of(each).clone() for layer, each in linears(model.module).items()}
    with pytest.raises(RefusedError, match=r"q_proj has 32 inputs and cannot be pruned in groups of 5"):
        step(name, pattern="3:5").apply(model, context)
    assert all(weight_of(each).equal(before[layer]) for layer, each in linears(model.module).items())


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.875])
def test_magnitude_removes_the_smallest_of_each_layer(
    sparsity: float, saved: Callable[[str], Path], context: Any
) -> None:
    before = {name: weight_of(layer).clone() for name, layer in linears(load(saved("gpt2")).module).items()}
    model = step("magnitude", sparsity=sparsity).apply(load(saved("gpt2")), context)
    for name, layer in linears(model.module).items():
        weight, mask = weight_of(layer), model.masks[name]
        assert int((~mask).sum()) == round(sparsity * mask.numel())
        assert before[name][~mask].abs().max() <= before[name][mask].abs().min()
        assert weight.equal(before[name] * mask)
    assert model.history == [f"prune magnitude {sparsity}"]


def test_one_threshold_over_the_model(saved: Callable[[str], Path], context: Any) -> None:
    import torch

    model = load(saved("llama"))
    _, layer = next(iter(linears(model.module).items()))
    weight_of(layer).mul_(100)
    before = {name: weight_of(each).clone() for name, each in linears(model.module).items()}
    step("magnitude", sparsity=0.5, over="model").apply(model, context)
    masks = torch.cat([model.masks[name].flatten() for name in before])
    sizes = torch.cat([weight.abs().flatten() for weight in before.values()])
    assert int((~masks).sum()) == round(0.5 * masks.numel())
    assert sizes[~masks].max() <= sizes[masks].min()
    shares = [float(mask.float().mean()) for mask in model.masks.values()]
    assert max(shares) > 0.9
    assert min(shares) < 0.6


def test_earlier_masks_stay_in_force(saved: Callable[[str], Path], context: Any) -> None:
    model = step("magnitude", pattern="2:4").apply(load(saved("llama")), context)
    before = {name: mask.clone() for name, mask in model.masks.items()}
    step("magnitude", sparsity=0.75).apply(model, context)
    for name, mask in model.masks.items():
        assert not (mask & ~before[name]).any()
        assert int((~mask).sum()) == round(0.75 * mask.numel())


@pytest.mark.parametrize(("name", "settings"), [("width", {"keep": 0.5}), ("heads", {"keep": 0.5}), ("depth", {})])
def test_what_makes_a_model_smaller_reads_any_text(
    name: str, settings: dict[str, Any], saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("link down on the north router " * 400, encoding="utf-8")
    nothing = replace(context, train=[])
    with pytest.raises(RefusedError, match="there are none"):
        step(name, **settings).apply(load(saved("llama")), nothing)
    cut = step(name, **settings, text=str(text), examples=4).apply(load(saved("llama")), nothing)
    assert len(cut.history) == 1
    assert step(name, **settings, text=str(text)).files() == [text]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_width_keeps_the_neurons_of_the_highest_slow_score(
    family: str, saved: Callable[[str], Path], context: Any
) -> None:
    from test_calibration import slow_inputs

    model = load(saved(family))
    last = ("down_proj", "fc2", "mlp.c_proj")
    expected = {}
    for name, layer in linears(model.module).items():
        if name.endswith(last):
            weight = weight_of(layer).clone()
            score = slow_inputs(model, layer, context).norm(dim=0) * weight.norm(dim=0)
            keep = sorted(sorted(range(64), key=lambda i, s=score: -float(s[i]))[:32])
            expected[name] = weight[:, keep]
    cut = step("width", keep=0.5).apply(model, context)
    assert len(expected) == 2
    for name, weight in expected.items():
        assert weight_of(linears(cut.module)[name]).equal(weight)
    assert cut.history == ["prune width 64 -> 32"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi", "phi3"])
def test_width_computes_what_the_whole_model_does_without_those_neurons(
    family: str, saved: Callable[[str], Path], context: Any
) -> None:
    """Cutting a neuron is the same as zeroing what it sends on."""
    import torch

    cut = step("width", keep=0.5).apply(load(saved(family)), context)
    whole = load(saved(family))
    for name, layer in linears(whole.module).items():
        if name.endswith(("down_proj", "fc2", "mlp.c_proj")):
            weight, left = weight_of(layer), weight_of(linears(cut.module)[name])
            for neuron in range(weight.shape[1]):
                if not any(weight[:, neuron].equal(left[:, i]) for i in range(left.shape[1])):
                    weight[:, neuron] = 0
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        assert torch.allclose(cut.module(ids).logits, whole.module(ids).logits, atol=1e-4)


@pytest.mark.parametrize(("keep", "multiple", "width"), [(0.5, 16, 32), (0.3, 16, 16), (0.01, 16, 16), (0.7, 1, 45)])
def test_width_is_a_multiple(
    keep: float, multiple: int, width: int, saved: Callable[[str], Path], context: Any
) -> None:
    model = step("width", keep=keep, multiple=multiple).apply(load(saved("llama")), context)
    assert model.module.config.intermediate_size == width


@pytest.mark.parametrize(("keep", "multiple"), [(0.99, 16), (0.5, 64), (0.5, 128)])
def test_a_width_that_removes_nothing_is_refused(
    keep: float, multiple: int, saved: Callable[[str], Path], context: Any
) -> None:
    with pytest.raises(RefusedError, match=r"keep .* of 64 neurons"):
        step("width", keep=keep, multiple=multiple).apply(load(saved("llama")), context)


@pytest.mark.parametrize("idle", [0, 1])
def test_depth_removes_the_block_that_changes_least(idle: int, saved: Callable[[str], Path], context: Any) -> None:
    model = load(saved("llama"))
    for name, layer in linears(model.module).items():
        if name.startswith(f"model.layers.{idle}.") and name.endswith(("o_proj", "down_proj")):
            weight_of(layer).zero_()
    other = blocks(model.module)[1 - idle]
    cut = step("depth").apply(model, context)
    assert list(blocks(cut.module)) == [other]
    assert cut.history == [f"prune depth, blocks [{idle}] gone"]
    assert cut.module.config.num_hidden_layers == 1
    assert {part.layer_idx for part in other.modules() if hasattr(part, "layer_idx")} == {0}


@pytest.mark.parametrize(
    ("family", "name"), [("qwen3", "layer_types"), ("gemma2", "layer_types"), ("smollm3", "no_rope_layers")]
)
def test_what_a_configuration_lists_block_by_block_loses_the_same_places(
    family: str, name: str, saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    kinds = {"layer_types": ["full_attention", "sliding_attention"], "no_rope_layers": [1, 0]}[name]
    base = load(saved(family))
    config = base.module.config
    setattr(config, name, kinds)
    config.use_sliding_window, config.sliding_window = True, 48
    module = AutoModelForCausalLM.from_config(config).eval()  # So that the blocks are of these kinds.
    module.load_state_dict(base.module.state_dict())
    base.module = module
    cut = step("depth").apply(base, context)
    gone = int(cut.history[0].partition("[")[2][0])
    assert getattr(cut.module.config, name) == [kinds[1 - gone]]
    cut.save(tmp_path / "variant")
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        assert load(tmp_path / "variant").module(ids).logits.equal(cut.module(ids).logits)


def test_a_model_of_three_blocks_loses_two() -> None:
    """Which two, by the influence that is measured; the order of the others stays."""
    from conftest import tiny_module

    from leanwatt.prune.depth import _renumber

    stack = blocks(tiny_module("llama"))
    del stack[0]
    _renumber(stack)
    assert [part.layer_idx for block in stack for part in block.modules() if hasattr(part, "layer_idx")] == [0]
