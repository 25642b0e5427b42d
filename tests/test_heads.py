"""Fewer attention heads: the right ones go, the rest computes what it did, and what cannot be expressed is refused."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_module

from leanwatt import catalog
from leanwatt.contracts import Outlook
from leanwatt.errors import RefusedError
from leanwatt.model import Model, linears, load, weight_of
from leanwatt.recipe import Choice

EXPRESSIBLE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "smollm3")
LEAVING = ("self_attn.o_proj", "self_attn.dense")


def heads(keep: float = 0.5) -> Any:
    return catalog.build(Choice("prune", "heads", {"keep": keep}))


def logits(module: Any) -> Any:
    import torch

    with torch.inference_mode():
        return module(torch.arange(3, 60)[None]).logits


def outgoing(model: Model) -> dict[str, Any]:
    """Name of the layer that leaves attention -> its weight, (hidden, heads, size)."""
    return {
        name: weight_of(layer).view(weight_of(layer).shape[0], -1, 8)
        for name, layer in linears(model.module).items()
        if name.endswith(LEAVING)
    }


@pytest.mark.parametrize("family", EXPRESSIBLE)
def test_it_computes_what_the_whole_model_does_without_those_heads(
    family: str, saved: Callable[[str], Path], context: Any
) -> None:
    """Cutting a head is the same as zeroing what it sends on."""
    import torch

    cut, whole = heads().apply(load(saved(family)), context), load(saved(family))
    left = outgoing(cut)
    for name, weight in outgoing(whole).items():
        stays = [any(weight[:, head].equal(left[name][:, i]) for i in range(2)) for head in range(4)]
        assert stays in ([True, True, False, False], [False, False, True, True]), "a group stays whole"
        weight[:, [not each for each in stays]] = 0
    assert torch.allclose(logits(cut.module), logits(whole.module), atol=1e-4)
    assert cut.history == ["prune heads 4 -> 2"]
    config = cut.module.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 8)
    assert sum(p.numel() for p in cut.module.parameters()) < sum(p.numel() for p in whole.module.parameters())


def test_the_heads_of_the_highest_slow_score_stay(saved: Callable[[str], Path], context: Any) -> None:
    from test_calibration import slow_inputs

    model = load(saved("llama"))
    expected = {}
    for name, weight in outgoing(model).items():
        inputs = slow_inputs(model, linears(model.module)[name], context)
        scores = []
        for group in range(2):
            columns = range(16 * group, 16 * group + 16)
            flat = weight.flatten(1)
            scores.append(sum(float(inputs[:, c].norm() * flat[:, c].norm()) ** 2 for c in columns))
        best = scores.index(max(scores))
        expected[name] = weight[:, 2 * best : 2 * best + 2].clone()
    cut = heads().apply(model, context)
    for name, weight in outgoing(cut).items():
        assert weight.equal(expected[name])


def test_masks_are_cut_with_the_heads(saved: Callable[[str], Path], context: Any, tmp_path: Path) -> None:
    model = catalog.build(Choice("prune", "magnitude", {"sparsity": 0.5})).apply(load(saved("qwen2")), context)
    cut = heads().apply(model, context)
    for name, layer in linears(cut.module).items():
        assert cut.masks[name].shape == weight_of(layer).shape
        assert not weight_of(layer)[~cut.masks[name]].any()
    cut.save(tmp_path / "variant")
    assert logits(load(tmp_path / "variant").module).equal(logits(cut.module))


def test_the_cache_gives_what_the_whole_pass_gives(saved: Callable[[str], Path], context: Any) -> None:
    import torch

    module = heads().apply(load(saved("llama")), context).module
    with torch.inference_mode():
        past = module(torch.arange(3, 30)[None], use_cache=True).past_key_values
        step = module(torch.tensor([[30]]), past_key_values=past).logits
        whole = module(torch.arange(3, 31)[None]).logits[:, -1:]
    assert past.layers[0].keys.shape[1] == 1
    assert torch.allclose(step, whole, atol=1e-5)


@pytest.mark.parametrize(("family", "word"), [("gpt2", "GPT-2"), ("gpt_neox", "GPT-NeoX"), ("opt", "OPT")])
def test_families_that_cannot_express_it_are_refused(
    family: str, word: str, saved: Callable[[str], Path], context: Any
) -> None:
    with pytest.raises(RefusedError, match=f"cannot express a {word} with fewer heads.*Use width or depth"):
        heads().foresee(Outlook(tiny_module(family).config))
    with pytest.raises(RefusedError, match=word):
        heads().apply(load(saved(family)), context)


def llama(**sizes: int) -> Outlook:
    from transformers import LlamaConfig

    return Outlook(LlamaConfig(**{"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, **sizes}))


def test_numbers_that_transformers_would_not_open_are_refused_with_those_that_it_would() -> None:
    with pytest.raises(RefusedError, match=r"0.75 of 32 heads is 24.*0.125 \(4 heads\), 0.25 \(8 heads\), 0.5 \(16 he"):
        heads(0.75).foresee(llama())
    with pytest.raises(RefusedError, match="is 32, which is all of them"):
        heads(0.95).foresee(llama())
    with pytest.raises(RefusedError, match="What can be kept: none"):
        heads(0.5).foresee(llama(num_key_value_heads=1))
    outlook = llama()
    heads().foresee(outlook)
    config = outlook.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (16, 4, 128)


def test_families_without_that_rule_take_any_number_of_groups() -> None:
    from transformers import Qwen2Config

    outlook = Outlook(Qwen2Config(hidden_size=4096, num_attention_heads=32, num_key_value_heads=8))
    heads(0.75).foresee(outlook)
    assert (outlook.config.num_attention_heads, outlook.config.num_key_value_heads) == (24, 6)


def test_a_phi_with_norms_in_attention_is_refused() -> None:
    config = deepcopy(tiny_module("phi").config)
    config.qk_layernorm = True
    with pytest.raises(RefusedError, match="fewer heads where Phi norms them"):
        heads().foresee(Outlook(config))


def test_a_pattern_is_not_broken(saved: Callable[[str], Path], context: Any) -> None:
    model = catalog.build(Choice("prune", "magnitude", {"pattern": "2:4"})).apply(load(saved("llama")), context)
    with pytest.raises(RefusedError, match="put heads first"):
        heads().apply(model, context)
