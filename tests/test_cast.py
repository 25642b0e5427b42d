"""16-bit weights: every parameter, no zero lost, and nothing that the type cannot hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leanwatt import catalog
from leanwatt.errors import RefusedError
from leanwatt.model import check, linears, load, weight_of
from leanwatt.recipe import Choice

NAMES = {"bf16": "bfloat16", "fp16": "float16"}


def cast(dtype: str) -> Any:
    return catalog.build(Choice("quantize", "cast", {"dtype": dtype}))


@pytest.mark.parametrize("dtype", NAMES)
def test_every_weight_is_rounded_to_the_nearest_and_takes_two_bytes(
    dtype: str, saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    import torch

    before = dict(load(saved("llama")).module.named_parameters())
    model = cast(dtype).apply(load(saved("llama")), context)
    for name, parameter in model.module.named_parameters():
        assert parameter.equal(before[name].detach().to(getattr(torch, NAMES[dtype])))
    assert all(buffer.dtype != getattr(torch, NAMES[dtype]) for buffer in model.module.buffers())
    assert model.history == [f"quantize cast {dtype}"]
    model.save(tmp_path / "variant")
    again = load(tmp_path / "variant")
    assert {str(p.dtype) for p in again.module.parameters()} == {f"torch.{NAMES[dtype]}"}
    whole, half = ((folder / "model.safetensors").stat().st_size for folder in (saved("llama"), tmp_path / "variant"))
    assert half < 0.6 * whole
    with catalog.build(Choice("engine", "transformers")).open(tmp_path / "variant", 1) as session:
        assert session.facts["weight_dtype"] == dtype


def test_masks_are_kept(saved: Callable[[str], Path], context: Any) -> None:
    pruned = catalog.build(Choice("prune", "magnitude", {"pattern": "2:4"})).apply(load(saved("gpt2")), context)
    masks = {name: mask.clone() for name, mask in pruned.masks.items()}
    model = cast("bf16").apply(pruned, context)
    check(model)
    assert model.patterns
    for name, layer in linears(model.module).items():
        assert model.masks[name].equal(masks[name])
        assert not weight_of(layer)[~masks[name]].any()


@pytest.mark.parametrize("wrong", [65600.0, -1e6, float("inf"), float("nan")])
def test_what_does_not_fit_is_refused_by_name_and_nothing_is_changed(
    wrong: float, saved: Callable[[str], Path], context: Any
) -> None:
    import torch

    model = load(saved("llama"))
    model.module.model.layers[1].mlp.up_proj.weight.data[0, 0] = wrong
    with pytest.raises(
        RefusedError, match=r"model.layers.1.mlp.up_proj.weight has a weight of .*fp16 ends at 6.55e\+04"
    ):
        cast("fp16").apply(model, context)
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}


def test_the_largest_that_fits_stays(saved: Callable[[str], Path], context: Any) -> None:
    model = load(saved("llama"))
    model.module.model.norm.weight.data[0] = 65504.0
    assert cast("fp16").apply(model, context).module.model.norm.weight[0].item() == 65504.0


def test_adapters_and_codes_are_refused(saved: Callable[[str], Path], context: Any) -> None:
    tuned = catalog.build(Choice("finetune", "lora", {"rank": 2})).apply(load(saved("llama")), context)
    with pytest.raises(RefusedError, match="merge"):
        cast("bf16").apply(tuned, context)
    coded = catalog.build(Choice("quantize", "round_to_nearest", {"bits": 8})).apply(load(saved("llama")), context)
    with pytest.raises(RefusedError, match="put cast before"):
        cast("bf16").apply(coded, context)
