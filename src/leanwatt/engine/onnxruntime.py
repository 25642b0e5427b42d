"""ONNX Runtime on CPUs: fp32, and integer weights in its block kernels.

The graph is our own (decision 18), traced once per variant and kept beside it. Integer codes become `MatMulNBits` as
they are: same integers, same scales. Masks give no saving here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from leanwatt.contracts import Engine
from leanwatt.engine import _onnx_graph as graph
from leanwatt.engine._asking import Array, Asking
from leanwatt.engine._stateless import converted, feed
from leanwatt.engine._tokens import Tokens
from leanwatt.engine._weights import Ran, facts
from leanwatt.errors import RefusedError, require
from leanwatt.prompt import Encoder


@final
@dataclass(frozen=True)
class Onnxruntime(Engine):
    """Run a model through ONNX Runtime on the CPU."""

    compute: Literal["auto", "fp32", "bf16"] = "auto"
    """What it multiplies in; auto is fp32, the only one that its CPU kernels have."""
    activations: Literal["float", "int8"] = "float"
    """int8 rounds activations too, for layers whose weights are integers: faster, less exact. Weights of 8 bits have a
    kernel for no others."""
    threads: int = 0
    """0 for all cores."""

    def __post_init__(self) -> None:
        require("onnxruntime", "engine", "onnxruntime")
        require("onnx", "engine", "onnxruntime")

    @contextmanager
    def open(self, artifact: Path, batch: int) -> Iterator[Asking]:
        """Convert if that has not been done, and load. Raises RefusedError for bf16 and for what cannot be traced."""
        if self.compute == "bf16":
            raise RefusedError("engine onnxruntime: it has no bf16 kernels for CPUs; use compute: fp32, or openvino.")
        rounded = self.activations == "int8"
        made = artifact / f"onnxruntime-{version('onnxruntime')}-{graph.VERSION}{'-int8' if rounded else ''}"
        folder = converted(made, lambda draft: graph.convert(artifact, draft, rounded=rounded))
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        encoder = Encoder(Tokens.open(artifact, plain=about["plain_tokenizer"]), about["context"])
        backend = _Onnx(_session(folder / "model.onnx", self.threads), about["heads"])
        yield Asking(backend, encoder, batch, _facts(about, folder, self.activations))


def _session(path: Path, threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that wait by spinning spend CPU time on nothing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class _Onnx:
    """Logits from a graph that takes its cache and gives it back."""

    def __init__(self, session: Any, heads: list[list[int]]) -> None:
        self._session, self._heads = session, heads
        self._names = [output.name for output in session.get_outputs()]
        self._past: list[Any] = []

    def prefill(self, ids: Array, positions: Array, mask: Array, keep: int) -> Array:
        self._past = [_value(np.zeros((len(ids), heads, 0, size), np.float32)) for heads, size in self._heads]
        return self._run(ids, positions, mask, keep)

    def step(self, ids: Array, positions: Array, mask: Array) -> Array:
        return self._run(ids, positions, mask, 1)

    def kept(self, ids: Array, positions: Array, mask: Array) -> list[Array]:
        """Keys and values of every layer, each (1, heads, tokens, size)."""
        self.prefill(ids, positions, mask, 1)
        return [np.array(each.numpy()) for each in self._past]

    def prefill_after(self, kept: list[Array], ids: Array, positions: Array, mask: Array, keep: int) -> Array:
        self._past = [_value(np.repeat(each, len(ids), axis=0)) for each in kept]
        return self._run(ids, positions, mask, keep)

    def _run(self, ids: Array, positions: Array, mask: Array, keep: int) -> Array:
        inputs = {name: _value(array) for name, array in feed(ids, positions, mask, keep).items()}
        inputs |= {f"past.{i}": value for i, value in enumerate(self._past)}
        logits, *self._past = self._session.run_with_ort_values(self._names, inputs)
        got: Array = logits.numpy()
        return got


def _value(array: Array) -> Any:
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _kernel(bits: int | None, *, rounds: bool) -> str:
    """With 8 bits it has kernels for integer activations only, and else unpacks all weights in each step.

    See <https://github.com/microsoft/onnxruntime/pull/24959>.
    """
    if bits == 8 and not rounds:
        return "dense fp32, unpacked from int8 in each step"
    return f"int{bits} weights, {'int8' if rounds else 'fp32'}" if bits else "dense fp32"


def _facts(about: dict[str, Any], folder: Path, activations: str) -> dict[str, Any]:
    found = about["facts"]
    bits = found["codes_bits"] if found["coded_layers"] else None
    files = tuple(path for path in folder.iterdir() if path.name != "about.json")
    ran = Ran(
        engine=f"onnxruntime {version('onnxruntime')}",
        compute="fp32",
        kernel=_kernel(bits, rounds=activations == "int8"),
        files=files,
        activations=activations if bits else "float",
    )
    return {**facts(found, ran), "primitives": about["primitives"]}
