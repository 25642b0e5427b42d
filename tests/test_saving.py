"""What a kernel can save of what was done to the weights, in words."""

from typing import Any

import pytest

from leanwatt.saving import expectation


@pytest.mark.parametrize(
    ("facts", "is_saving", "words"),
    [
        ({}, None, ""),
        ({"sparsity": 0.0, "kernel": "dense bf16"}, None, ""),
        ({"parameters": 100, "base_parameters": 100}, None, ""),
        (
            {"parameters": 75, "base_parameters": 100, "kernel": "dense bf16"},
            True,
            "75% of the base's weights",
        ),
        ({"sparsity": 0.5, "kernel": "dense bf16"}, False, "50% of the weights are zero and no kernel here skips them"),
        ({"sparsity": 0.5, "kernel": "2:4 sparse bf16"}, True, "2:4 sparse bf16 skips them"),
        ({"codes_bits": 4, "kernel": "dense fp32"}, False, "unpacked and multiplied as dense fp32"),
        ({"codes_bits": 4, "kernel": "int4 weights, fp32"}, True, "read the integers"),
        (
            {"codes_bits": 4, "kernel": "int4 weights, fp32", "coded_layers": 3, "layers_with_codes": 3},
            True,
            "integers.",
        ),
        (
            {"codes_bits": 4, "kernel": "int4 weights, fp32", "coded_layers": 2, "layers_with_codes": 3},
            True,
            "read the integers of 2 of 3 layers; the others are unpacked.",
        ),
        (
            {"codes_bits": 8, "kernel": "dense fp32, unpacked from int8 in each step", "coded_layers": 3},
            False,
            "No saving expected from 8 bits",
        ),
        ({"codes_bits": 8, "kernel": "int8 weights, bf16", "sparsity": 0.5}, True, "No saving expected from pruning"),
        ({"requantized": True, "kernel": "fp8 weights, bf16"}, None, "its own way"),
    ],
)
def test_the_expectation_follows_what_ran(facts: dict[str, Any], is_saving: bool | None, words: str) -> None:
    found = expectation(facts)
    assert found.is_saving is is_saving
    assert words in found.reason
