"""LoRA on a base held in 8 or 4 bits, fp16: what is left in the folder is what the adapters have learned to correct."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leanwatt import catalog
from leanwatt.errors import MissingExtraError, RefusedError
from leanwatt.finetune.full import _halved
from leanwatt.model import linears, load, weight_of
from leanwatt.recipe import Choice

FAMILIES = ("llama", "gpt2")


def lora(precision: str, **settings: Any) -> Any:
    return catalog.build(Choice("finetune", "lora", {"rank": 4, "precision": precision, **settings}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("precision", "most"), [("int8", 0.01), ("nf4", 0.12)])
def test_the_base_is_what_its_codes_say(
    precision: str, most: float, family: str, saved: Callable[[str], Path], context: Any
) -> None:
    import torch

    before = {name: weight_of(layer).clone() for name, layer in linears(load(saved(family)).module).items()}
    tuned = lora(precision, epochs=3).apply(load(saved(family)), context)
    base = tuned.module.get_base_model()
    for name, weight in before.items():
        got = base.get_submodule(name).base_layer
        error = (weight_of(got).float() - weight).norm() / weight.norm()
        assert 0 < float(error) < most, name
        assert got.weight.dtype == torch.bfloat16
    if precision == "nf4":
        one = weight_of(base.get_submodule(next(iter(before))).base_layer).flatten()[:32]
        assert len(one.unique()) <= 16, "a block has 16 values at most"
    learned = [p for name, p in tuned.module.named_parameters() if "lora_B" in name]
    assert learned and all(bool(p.abs().max() > 0) for p in learned)
    assert not any(getattr(tuned.module, flag, False) for flag in ("is_loaded_in_8bit", "is_loaded_in_4bit"))


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_adds_the_adapters_to_what_the_codes_say(
    family: str, saved: Callable[[str], Path], context: Any
) -> None:
    import torch

    tuned = lora("nf4", epochs=3, alpha=8.0).apply(load(saved(family)), context)
    wanted = {}
    for name, layer in tuned.module.get_base_model().named_modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "base_layer"):
            added = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * (8.0 / 4)
            wanted[name] = weight_of(layer.base_layer).float() + added.detach()
    merged = catalog.build(Choice("merge", "merge")).apply(tuned, context)
    assert len(wanted) == len(linears(merged.module))
    for name, weight in wanted.items():
        got = weight_of(linears(merged.module)[name])
        assert torch.allclose(got.float(), weight, atol=4e-3), name


def test_the_plain_weights_are_not_in_memory_meanwhile(
    saved: Callable[[str], Path], context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leanwatt.finetune import lora as room

    sizes, real = list[int](), room.tune

    def tune(model: Any, *arguments: Any) -> Any:
        sizes.extend(p.numel() for n, p in model.module.named_parameters() if "q_proj" in n and "base_layer" in n)
        return real(model, *arguments)

    monkeypatch.setattr(room, "tune", tune)
    lora("nf4").apply(load(saved("llama")), context)
    assert sizes == [32 * 32 // 2] * 2, "two weights in a byte"


def test_without_the_library_it_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanwatt.finetune.lora.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'leanwatt\[lora\]'"):
        lora("nf4")
    assert lora("bf16").precision == "bf16"


def test_what_fp16_cannot_hold_is_refused_by_name(saved: Callable[[str], Path]) -> None:
    import torch

    model = load(saved("llama"))
    assert {p.dtype for p in _halved(model, "fp16").module.parameters()} == {torch.float16}
    model = load(saved("llama"))
    name, parameter = next(iter(model.module.named_parameters()))
    parameter.data[0, 0] = 1e6
    with pytest.raises(RefusedError, match=rf"{name} has weights too large for fp16"):
        _halved(model, "fp16")


def test_blocks_that_would_cross_rows_are_refused() -> None:
    from leanwatt.finetune._low_bits import _block

    assert [_block(columns) for columns in (64, 96, 768)] == [64, 32, 64]
    with pytest.raises(RefusedError, match=r"40 inputs.*int8"):
        _block(40)


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_machine_without_the_kernels_is_refused_in_one_sentence(
    precision: str, saved: Callable[[str], Path], context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_kernels(layer: Any, precision: str) -> Any:
        def forward(_: Any) -> Any:
            raise NotImplementedError("no kernel for 'cpu'\nat line 3")

        return forward

    monkeypatch.setattr("leanwatt.finetune._low_bits._low", without_kernels)
    with pytest.raises(RefusedError, match=rf"lora {precision}: .*\(no kernel for 'cpu'\)\. Use bf16 or fp32\.$"):
        lora(precision).apply(load(saved("llama")), context)
