"""What an engine's weights are here: sizes on disk and in memory, what multiplies them, and what that can save."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanwatt.model import Codes, Model, weight_facts
from leanwatt.saving import expectation

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Of one weight without codes."""


@dataclass(frozen=True)
class Ran:
    """What really runs."""

    engine: str
    """With its version."""
    compute: str
    """What is multiplied in: a key of BYTES."""
    kernel: str
    """Begins with `int8` or `int4` where codes are multiplied as they are, with `dense` where they are unpacked first;
    holds `sparse` where zeros are skipped."""
    files: tuple[Path, ...]
    """The weights on disk, as the engine reads them."""
    activations: str = "float"
    requantized: bool = False


def sizes(model: Model, taken: Iterable[Codes]) -> dict[str, Any]:
    """Facts about the weights that do not depend on what they are multiplied in; `taken` are codes used as they are."""
    kept = list(taken)
    coded = {"coded_parameters": sum(each.codes.numel() for each in kept), "coded_bytes": sum(e.bytes for e in kept)}
    return {**weight_facts(model), "layers_with_codes": len(model.codes), "coded_layers": len(kept), **coded}


def facts(found: Mapping[str, Any], ran: Ran) -> dict[str, Any]:
    """The facts of a session: `found` comes from `sizes`. `weight_bytes` is the size in memory."""
    whole = (found["parameters"] - found["coded_parameters"]) * BYTES[ran.compute]
    told = {
        **found,
        "engine": ran.engine,
        "weight_dtype": found["codes_kind"] if found["coded_layers"] else ran.compute,
        "compute_dtype": ran.compute,
        "activations": ran.activations,
        "kernel": ran.kernel,
        "weight_bytes": whole + found["coded_bytes"],
        "weight_bytes_on_disk": sum(path.stat().st_size for path in ran.files),
        "requantized": ran.requantized,
    }
    expected = expectation(told)
    if expected.reason:  # Also where it only says what the engine did.
        told |= {"saving_expected": expected.is_saving, "saving_reason": expected.reason}
    return told


def symmetric(model: Model) -> dict[str, Codes]:
    """Codes that are integers times scales, without an offset or a table: what every integer kernel takes."""
    return {name: codes for name, codes in model.codes.items() if _is_symmetric(codes)}


def _is_symmetric(codes: Codes) -> bool:
    rows, groups = codes.scales.shape
    product = codes.codes.view(rows, groups, -1).float() * codes.scales.unsqueeze(-1)
    return codes.bits in (4, 8) and product.view(rows, -1).equal(codes.weight)


def safetensors(artifact: Path) -> tuple[Path, ...]:
    """The dense weights of an artifact, and its adapters; engines that multiply these read no masks and codes."""
    files = [*artifact.glob("model*.safetensors"), *artifact.glob("adapter/*.safetensors")]
    return tuple(sorted(files))
