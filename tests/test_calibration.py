"""The statistics that pruning reads, against the slow way: one example at a time, unpadded."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import FAMILIES

from leanwatt.calibration import block_influence, input_norms, inputs_of, sample
from leanwatt.errors import RefusedError
from leanwatt.model import blocks, linears, load


def slow_inputs(model: Any, layer: Any, context: Any) -> Any:
    """What enters one layer, for all tokens of all examples: (tokens, features)."""
    import torch

    found = []
    hook = layer.register_forward_pre_hook(lambda _module, args: found.append(args[0].detach().flatten(0, -2)))
    with torch.inference_mode():
        for lesson in sample(model, context, 1000):
            model.module(torch.tensor([lesson.ids]), use_cache=False)
    hook.remove()
    return torch.cat(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_are_those_of_real_tokens(family: str, saved: Callable[[str], Path], context: Any) -> None:
    model = load(saved(family))
    layers = linears(model.module)
    norms = input_norms(model, layers, context, 1000)
    assert norms.keys() == layers.keys()
    for name, layer in layers.items():
        expected = slow_inputs(model, layer, context).norm(dim=0)
        assert norms[name].shape == expected.shape
        assert norms[name].numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_influence_is_one_minus_the_mean_cosine(family: str, saved: Callable[[str], Path], context: Any) -> None:
    import torch

    model = load(saved(family))
    stack = blocks(model.module)
    expected = []
    for block in stack:
        outputs: list[Any] = []
        hook = block.register_forward_hook(
            lambda _m, _a, out, outputs=outputs: outputs.append((out[0] if isinstance(out, tuple) else out)[0])
        )
        inputs = slow_inputs(model, block, context)
        hook.remove()
        cosine = torch.cosine_similarity(inputs, torch.cat(outputs), dim=-1)
        expected.append(float(1 - cosine.mean()))
    assert block_influence(model, context, 1000) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_the_sample_follows_the_seed_and_is_never_too_large(saved: Callable[[str], Path], context: Any) -> None:
    model = load(saved("llama"))
    assert len(sample(model, context, 3)) == 3
    assert len(sample(model, context, 1000)) == len(context.train)
    assert sample(model, context, 8) == sample(model, context, 8)
    assert sample(model, context, 8) != sample(model, replace(context, seed=1), 8)


def test_nothing_to_calibrate_on_is_refused(saved: Callable[[str], Path], context: Any) -> None:
    with pytest.raises(RefusedError, match="there are none"):
        sample(load(saved("llama")), replace(context, train=[]), 3)


def test_hooks_are_gone_afterwards_even_after_a_failure(saved: Callable[[str], Path], context: Any) -> None:
    model = load(saved("llama"))
    layers = linears(model.module)
    with pytest.raises(RuntimeError, match="boom"), inputs_of(layers):
        raise RuntimeError("boom")
    input_norms(model, layers, context, 2)
    block_influence(model, context, 2)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.module.modules())
