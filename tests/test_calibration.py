"""The statistics that pruning reads, against the slow way: one example at a time, unpadded."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import FAMILIES, tiny_module, tiny_tokenizer

from leanwatt.calibration import BATCH, LONGEST, block_influence, input_norms, inputs_of, sample, stages, walk
from leanwatt.errors import RefusedError
from leanwatt.model import Model, blocks, linears, load, weight_of


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
    norms = input_norms(model, layers, sample(model, context, 1000), context)
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
    assert block_influence(model, sample(model, context, 1000), context) == pytest.approx(expected, rel=1e-3, abs=1e-5)


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
    input_norms(model, layers, sample(model, context, 2), context)
    block_influence(model, sample(model, context, 2), context)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.module.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_walk_shows_each_block_what_the_changed_blocks_before_it_send_on(
    family: str, saved: Callable[[str], Path], context: Any
) -> None:
    model = load(saved(family))
    visited: list[str] = []
    for visit in walk(model, sample(model, context, 1000), context):
        seen = list(visit.inputs())
        for name, layer in visit.layers.items():
            found = sum(batch[name].double().square().sum(0) for batch in seen)
            expected = slow_inputs(model, layer, context).double().square().sum(0)
            assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-5)
        for layer in visit.layers.values():
            weight_of(layer).mul_(1.5)
        visited += visit.layers
    assert visited == list(linears(model.module))
    assert all("forward" not in vars(block) for block in blocks(model.module))


@pytest.mark.parametrize("family", [*FAMILIES, "opt", "phi", "gpt_neox", "qwen3", "gemma"])
def test_a_stage_sees_what_all_changed_layers_before_it_send_on(
    family: str, saved: Callable[[str], Path], context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer's inputs are those of a whole run of the model as it is then, and what is sent on is right too."""
    monkeypatch.setattr("leanwatt.calibration.BATCH", 5)
    model, visited = load(saved(family)), list[str]()
    for stage in stages(model, sample(model, context, 1000), context):
        found = sum(inputs.double().square().sum(0) for inputs in stage.inputs())
        for layer in stage.layers.values():
            expected = slow_inputs(model, layer, context).double().square().sum(0)
            assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-5)
        for layer in stage.layers.values():
            weight_of(layer).mul_(1.5)
        visited += stage.layers
    assert sorted(visited) == sorted(linears(model.module))


def test_a_stage_holds_the_layers_that_read_the_same_tensor(saved: Callable[[str], Path], context: Any) -> None:
    model = load(saved("llama"))
    seen = [
        [name.removeprefix("model.layers.").partition(".")[2] for name in stage.layers]
        for stage in stages(model, sample(model, context, 3), context)
    ]
    block = [
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ["self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
        ["mlp.down_proj"],
    ]
    assert seen == block * 2


def test_a_stage_that_fails_leaves_the_model_as_it_was(saved: Callable[[str], Path], context: Any) -> None:
    import torch

    model = load(saved("llama"))
    with pytest.raises(RuntimeError, match="boom"):
        for _ in stages(model, sample(model, context, 3), context):
            raise RuntimeError("boom")
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.module.modules())
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    model.module(torch.tensor([[3, 4]])).logits.sum().backward()


def test_layers_that_read_the_same_tensor_share_it(saved: Callable[[str], Path], context: Any) -> None:
    model = load(saved("llama"))
    visit = next(walk(model, sample(model, context, BATCH), context))
    [batch] = visit.inputs()
    by_last_name = {name.rpartition(".")[2]: inputs for name, inputs in batch.items()}
    assert by_last_name["q_proj"] is by_last_name["k_proj"] is by_last_name["v_proj"]
    assert by_last_name["gate_proj"] is by_last_name["up_proj"]
    assert by_last_name["o_proj"] is not by_last_name["q_proj"]
    [together] = visit.shared_inputs()
    assert [[name.rpartition(".")[2] for name in names] for names in together] == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]
    assert all(tensor.equal(batch[name]) for names, tensor in together.items() for name in names)


def test_pieces_of_plain_text(saved: Callable[[str], Path], context: Any, tmp_path: Path) -> None:
    model = load(saved("llama"))
    text = tmp_path / "text.txt"
    text.write_text("link down on the north router " * 400, encoding="utf-8")
    pieces = sample(model, context, 5, str(text))
    assert [len(piece.ids) for piece in pieces] == [min(LONGEST, model.context)] * 5
    assert pieces == sample(model, context, 5, str(text))
    assert pieces != sample(model, replace(context, seed=1), 5, str(text))
    text.write_text("short", encoding="utf-8")
    with pytest.raises(RefusedError, match=r"has \d+ tokens; at least"):
        sample(model, context, 5, str(text))
    with pytest.raises(RefusedError, match="cannot be read as UTF-8"):
        sample(model, context, 5, str(tmp_path / "none.txt"))


def deep(blocks: int) -> Model:
    """A Llama of so many blocks."""
    from transformers import LlamaForCausalLM

    config = tiny_module("llama").config
    config.num_hidden_layers = blocks
    return Model(LlamaForCausalLM(config).eval(), tiny_tokenizer())


def walked(model: Model, on: Any, context: Any) -> None:
    for visit in walk(model, on, context):
        list(visit.inputs())


def norms(model: Model, on: Any, context: Any) -> None:
    input_norms(model, linears(model.module), on, context)


@pytest.mark.parametrize("method", [norms, block_influence, walked])
def test_activations_are_those_of_one_block_and_progress_is_told(method: Any, context: Any) -> None:
    """As many are alive in a model of six blocks as in one of two."""
    import torch

    alive: dict[int, int] = {}
    for size in (2, 6):
        model, told = deep(size), list[float]()

        def count(_what: str, share: float, size: int = size, told: list[float] = told) -> None:
            told.append(share)
            tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
            activations = sum(each.ndim == 3 and not each.requires_grad for each in tensors)
            alive[size] = max(alive.get(size, 0), activations)

        method(model, sample(model, context, 1000), replace(context, progress=count))
        assert told == [(place + 1) / size for place in range(size)]
        del model
    assert alive[6] == alive[2] > 0
