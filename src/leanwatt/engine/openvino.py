"""OpenVINO: several times faster than eager torch on CPUs, at 16, 8 and 4 bits.

Converted with openvino itself, once per variant, and kept beside it. Codes (integers, or NF4) are handed over as they
are: nothing is quantized anew. Masks give no saving here: zeros are multiplied like other numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import openvino as ov

from leanwatt.contracts import Engine
from leanwatt.engine import _openvino_graph as graph
from leanwatt.engine._asking import Array, Asking
from leanwatt.engine._stateless import converted, feed
from leanwatt.engine._tokens import Tokens
from leanwatt.engine._weights import Ran, facts
from leanwatt.errors import RefusedError
from leanwatt.prompt import Encoder

SHAPES_KEPT = 128
"""For which prepared kernels are kept: OpenVINO's 5000 let a server grow by hundreds of megabytes, no faster for it."""


@final
@dataclass(frozen=True)
class Openvino(Engine):
    """Run a model through OpenVINO on the CPU."""

    compute: Literal["auto", "fp32", "bf16"] = "auto"
    """What it multiplies in; auto is bf16 where the CPU has instructions for it, else fp32."""
    activations: Literal["float", "int8"] = "float"
    """int8 rounds activations too, for layers whose weights are integers: faster with VNNI, less exact. smoothquant
    prepares a model for it."""
    threads: int = 0
    """0 for all cores."""

    @contextmanager
    def open(self, artifact: Path, batch: int) -> Iterator[Asking]:
        """Convert if that has not been done, and compile."""
        made = artifact / f"openvino-{ov.__version__.split('-')[0]}-{graph.VERSION}"
        folder = converted(made, lambda draft: graph.convert(artifact, draft))
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        compute = _compute(self.compute)
        if self.activations == "int8" and not about["can_round"]:
            raise RefusedError(
                "engine openvino: activations: int8 needs integer codes with one scale per row, or groups of a "
                f"multiple of {graph.ROUNDED}; quantize with such a group, or take activations: float."
            )
        core = ov.Core()
        compiled = core.compile_model(str(folder / "model.xml"), "CPU", self._settings(compute))
        encoder = Encoder(Tokens.open(artifact, plain=about["plain_tokenizer"]), about["context"])
        told = _facts(compiled, compute, self.activations, about, folder)
        yield Asking(_OpenVino(compiled, about["heads"]), encoder, batch, told)

    def _settings(self, compute: str) -> dict[str, Any]:
        kind = {"fp32": "f32", "bf16": "bf16"}[compute]
        return {
            "INFERENCE_PRECISION_HINT": kind,
            "KV_CACHE_PRECISION": kind,
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "CPU_RUNTIME_CACHE_CAPACITY": SHAPES_KEPT,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": graph.ROUNDED if self.activations == "int8" else 0,
        }


def _compute(wanted: str) -> str:
    has_bf16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if wanted == "bf16" and not has_bf16:
        raise RefusedError("engine openvino: this CPU has no bf16 instructions; use compute: fp32 or auto.")
    if wanted == "auto":
        return "bf16" if has_bf16 else "fp32"
    return wanted


class _OpenVino:
    """Logits from a compiled model that keeps its cache as state."""

    def __init__(self, compiled: Any, heads: list[list[int]]) -> None:
        self._request, self._heads = compiled.create_infer_request(), heads

    def prefill(self, ids: Array, positions: Array, mask: Array, keep: int) -> Array:
        for state, (heads, size) in zip(self._request.query_state(), self._heads, strict=True):
            state.state = ov.Tensor(np.zeros((len(ids), heads, 0, size), np.float32))
        return self._run(ids, positions, mask, keep)

    def step(self, ids: Array, positions: Array, mask: Array) -> Array:
        return self._run(ids, positions, mask, 1)

    def kept(self, ids: Array, positions: Array, mask: Array) -> dict[int, list[Any]]:
        """Keys and values of every layer: of one row, and as often as the latest batch had rows."""
        self.prefill(ids, positions, mask, 1)
        return {1: [ov.Tensor(np.array(state.state.data)) for state in self._request.query_state()]}

    def prefill_after(self, kept: dict[int, list[Any]], ids: Array, positions: Array, mask: Array, keep: int) -> Array:
        rows = len(ids)
        if rows not in kept:
            one = kept[1]
            kept.clear()  # A server's batches have many sizes, and most of a study's have one.
            kept |= {1: one, rows: [ov.Tensor(np.repeat(each.data, rows, axis=0)) for each in one]}
        for state, each in zip(self._request.query_state(), kept[rows], strict=True):
            state.state = each
        return self._run(ids, positions, mask, keep)

    def _run(self, ids: Array, positions: Array, mask: Array, keep: int) -> Array:
        logits: Array = self._request.infer(feed(ids, positions, mask, keep))["logits"].copy()
        return logits


def _facts(compiled: Any, compute: str, activations: str, about: dict[str, Any], folder: Path) -> dict[str, Any]:
    stored = about["facts"]["codes_kind"]
    ran = Ran(
        engine=f"openvino {ov.__version__.split('-')[0]}",
        compute=compute,
        kernel=f"{stored} weights, {'int8' if activations == 'int8' else compute}" if stored else f"dense {compute}",
        files=(folder / "model.bin",),
        activations=activations if stored else "float",
    )
    return {**facts(about["facts"], ran), "primitives": graph.kernels(compiled)}
