"""NF4 against a loop, against the normal distribution its levels come from, and against bitsandbytes."""

from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from leanwatt import catalog
from leanwatt.model import Codes, linears, load, weight_facts, weight_of
from leanwatt.quantize._codes import nearest_codes
from leanwatt.quantize.nf4 import LEVELS, nearest_levels
from leanwatt.recipe import Choice


def test_levels_are_the_quantiles_of_the_paper() -> None:
    """Seven below zero, zero, eight above: equally likely for a normal weight, scaled to end at -1 and 1."""
    outermost = 0.5 * (1 - 1 / 32 + 1 - 1 / 30)
    above = [NormalDist().inv_cdf(p) for p in np.linspace(outermost, 0.5, 9)[:-1]]
    below = [-NormalDist().inv_cdf(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]
    expected = np.array(sorted([*below, 0.0, *above]))
    assert pytest.approx(expected / expected.max(), abs=1e-6) == LEVELS


@pytest.mark.parametrize("group", [0, 2, 4, 3])
@given(weight=arrays.arrays("float32", (3, 8), elements=st.floats(-8, 8, width=32)))
@settings(max_examples=25, deadline=None)
def test_each_weight_is_at_the_nearest_level(group: int, weight: Any) -> None:
    import torch

    got = nearest_levels(torch.from_numpy(weight), group)
    size = group if group and 8 % group == 0 else 8
    assert got.scales.shape == (3, 8 // size)
    for row in range(3):
        for column in range(8):
            scale = float(got.scales[row, column // size])
            largest = np.abs(weight[row, column // size * size :][:size]).max()
            assert scale == pytest.approx(max(float(largest), 1e-7), rel=1e-3, abs=6e-8)
            code = int(got.codes[row, column])
            nearest = min(abs(level * scale - weight[row, column]) for level in LEVELS)
            assert abs(LEVELS[code + 7] * scale - weight[row, column]) <= nearest + 1e-5 * scale
            assert got.weight[row, column] == np.float32(LEVELS[code + 7]) * np.float32(scale)


def test_normal_weights_err_less_than_with_equal_steps() -> None:
    import torch

    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    errors = [
        float((codes.weight - weight).norm()) for codes in (nearest_levels(weight, 64), nearest_codes(weight, 4, 64))
    ]
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("group", [64, 128])
def test_weights_are_those_of_bitsandbytes(group: int) -> None:
    """But for its scales of 32 bits, where engines keep 16."""
    import torch

    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(0)) / 50
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.3] = 0
    packed, state = functional.quantize_4bit(weight, blocksize=group, quant_type="nf4")
    theirs = functional.dequantize_4bit(packed, state)
    ours = nearest_levels(weight, group)
    assert torch.allclose(torch.tensor(LEVELS), state.code.cpu(), atol=1e-7)
    high, low = packed.flatten() >> 4, packed.flatten() & 15
    places = torch.stack([high, low], dim=1).view(weight.shape)
    assert (ours.places != places).float().mean() < 0.001
    same = ours.places == places
    assert torch.allclose(ours.weight[same], theirs[same], rtol=1e-3)
    assert not ours.weight[weight == 0].any()


def test_codes_know_what_they_are(saved: Callable[[str], Path], context: Any, tmp_path: Path) -> None:
    import torch

    model = catalog.build(Choice("quantize", "nf4", {"group": 16})).apply(load(saved("gpt2")), context)
    assert model.history == ["quantize nf4, group 16"]
    assert weight_facts(model)["codes_kind"] == "nf4"
    assert weight_facts(model)["codes_bits"] == 4
    model.save(tmp_path / "variant")
    again = load(tmp_path / "variant")
    for name, layer in linears(again.module).items():
        codes = again.codes[name]
        assert codes.kind == "nf4"
        assert codes.levels is not None
        assert codes.levels.equal(torch.tensor(LEVELS))
        assert int(codes.places.min()) == 0 <= int(codes.places.max()) <= 15
        assert codes.bytes == codes.codes.numel() // 2 + codes.scales.numel() * 2
        assert weight_of(layer).equal(codes.weight)


def test_integers_have_no_table() -> None:
    import torch

    codes = Codes(torch.zeros(1, 2, dtype=torch.int8), torch.ones(1, 1), 8)
    assert codes.kind == "int8"
    with pytest.raises(ValueError, match="int8 codes are integers"):
        _ = codes.places
