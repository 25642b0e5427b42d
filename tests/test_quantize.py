"""Round to nearest against a loop, its bounds, and what must stay."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from leanwatt import catalog
from leanwatt.model import linears, load, weight_of
from leanwatt.quantize._codes import nearest_codes
from leanwatt.recipe import Choice

WEIGHTS = arrays.arrays("float32", (3, 8), elements=st.floats(-8, 8, width=32))


def slow_codes(weight: Any, bits: int, group: int) -> tuple[Any, Any]:
    """One weight after the other."""
    largest = 2 ** (bits - 1) - 1
    size = group if group and weight.shape[1] % group == 0 else weight.shape[1]
    codes, scales = np.zeros(weight.shape, int), []
    for r, row in enumerate(weight):
        for start in range(0, len(row), size):
            top = max(abs(np.float32(value)) for value in row[start : start + size])
            scale = np.float32(np.float16(max(np.float32(top) / np.float32(largest), np.float32(1e-7))))
            scales.append(scale)
            for i in range(start, start + size):
                codes[r, i] = max(-largest, min(largest, int(np.round(np.float32(row[i]) / scale))))
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
    largest = 2 ** (bits - 1) - 1
    # The scale is rounded to 16 bits, so the largest weight may miss its code by that much.
    assert (error <= step * (0.5 + largest * 2**-11) + 1e-9).all()
    assert not codes.weight.numpy()[weight == 0].any()
    assert np.abs(codes.codes.numpy()).max() <= largest


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
