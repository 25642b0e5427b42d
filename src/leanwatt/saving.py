"""Was a saving to be expected? What was done to the weights, against the kernels that really ran."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

FEW_ZEROS = 0.01
"""Share of zeros that nobody expects anything from."""
CODED = ("int", "nf4", "fp8")
"""A kernel's name begins with one of these where it multiplies with stored codes, else with `dense`."""


@dataclass(frozen=True)
class Expectation:
    """What theory says about a variant in an engine, in words."""

    is_saving: bool | None
    """None where nothing was done to the weights that could save."""
    reason: str


def expectation(facts: Mapping[str, Any]) -> Expectation:
    """From sizes, `kernel`, `sparsity`, `codes_bits`, `requantized`, and how many layers with codes a kernel reads.

    What is measured is shown all the same.
    """
    found = [*_size(facts), *_zeros(facts), *_bits(facts)]
    reasons = [reason for _, reason in found]
    if facts.get("requantized") is True:
        reasons.append("The engine quantized the weights again, its own way.")
    return Expectation(any(pays for pays, _ in found) if found else None, " ".join(reasons))


def _size(facts: Mapping[str, Any]) -> Iterable[tuple[bool, str]]:
    left, whole = facts.get("parameters"), facts.get("base_parameters")
    if left and whole and left < whole:
        yield True, f"A saving is expected from a smaller model: {left / whole:.0%} of the base's weights are left."


def _zeros(facts: Mapping[str, Any]) -> Iterable[tuple[bool, str]]:
    zeros, kernel = facts.get("sparsity"), str(facts.get("kernel") or "")
    if not isinstance(zeros, float) or zeros <= FEW_ZEROS:
        return
    if "sparse" in kernel:
        yield True, f"A saving is expected from pruning: {zeros:.0%} of the weights are zero and {kernel} skips them."
    else:
        yield (
            False,
            f"No saving expected from pruning: {zeros:.0%} of the weights are zero and no kernel here skips them.",
        )


def _bits(facts: Mapping[str, Any]) -> Iterable[tuple[bool, str]]:
    bits, kernel = facts.get("codes_bits"), str(facts.get("kernel") or "")
    if not bits:
        return
    if kernel.startswith(CODED):
        read, all_ = facts.get("coded_layers"), facts.get("layers_with_codes")
        where = f" of {read} of {all_} layers; the others are unpacked" if read and all_ and read < all_ else ""
        yield True, f"A saving is expected from {bits} bits: the kernels read the integers{where}."
    else:
        yield (
            False,
            f"No saving expected from {bits} bits: the weights are unpacked and multiplied as {kernel or 'unknown'}.",
        )
