"""torch.compile on CPUs: the same model as the reference, as machine code for a few fixed shapes.

Inputs are padded to lengths of 64, 128, 256, ... and to the whole batch, so that a context and its options bound the
number of graphs; each is compiled when first needed. The cache is static. Weights may be frozen: packed anew for every
graph. Integer codes go to torch's own kernels, those under torchao, as they are (decision 19): four bits in groups of
32 to 256, eight bits with one scale per row; others are unpacked. On a GPU use transformers or vllm.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from leanwatt.contracts import Engine
from leanwatt.engine._asking import Array, Asking
from leanwatt.engine._low_bit import put_kernels
from leanwatt.engine._weights import Ran, facts, safetensors, sizes
from leanwatt.errors import RefusedError
from leanwatt.model import Model, cast, load
from leanwatt.prompt import Encoder

SHORTEST = 64
"""Tokens of the smallest graph."""
FEWEST = 16
"""Least number of places whose logits a graph gives."""
GRAPHS = 64
"""More than a context of a million tokens needs; beyond it torch would fall back to eager."""


@final
@dataclass(frozen=True)
class Compiled(Engine):
    """Run a model compiled by torch's inductor."""

    compute: Literal["auto", "fp32", "bf16"] = "auto"
    """What it multiplies in; auto is bf16 where the CPU has instructions for it, else what the weights are saved in."""
    frozen: bool = True
    """Make the weights part of each graph, packed for its shape: faster, at the price of a copy for every graph."""
    codes: Literal["kernels", "unpacked"] = "kernels"
    """Whether integer codes are multiplied as they are, or unpacked: which is cheaper depends on the task."""

    @contextmanager
    def open(self, artifact: Path, batch: int) -> Iterator[Asking]:
        """Load; graphs are compiled at the first questions. Raises RefusedError without a C++ compiler."""
        import torch

        _check_compiler()
        model = load(artifact)
        if model.has_adapters:
            raise RefusedError("engine compiled: the model has adapters; put `merge: [merge]` after finetune.")
        compute = _compute(self.compute, str(model.module.dtype))
        cast(model.module, {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[compute])
        told = self._facts(model, artifact, compute)
        backend = _Graphs(model.module, batch, self.frozen)
        try:
            yield Asking(backend, Encoder(model.tokenizer, model.context), batch, told)
        finally:
            torch.compiler.reset()

    def _facts(self, model: Model, artifact: Path, compute: str) -> dict[str, Any]:
        """Puts the integer kernels in: sizes are told of the model as it was."""
        import torch

        before = sizes(model, [])
        taken = put_kernels(model) if self.codes == "kernels" else []
        found = before | {key: value for key, value in sizes(model, taken).items() if key.startswith("coded")}
        kernel = f"int{taken[0].bits} weights, {compute}" if taken else f"dense {compute}"
        ran = Ran(f"compiled torch {torch.__version__}", compute, kernel, safetensors(artifact))
        return {**facts(found, ran), "weight_copies": "one for each graph" if self.frozen else "one"}


def _check_compiler() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Parts of torch deprecate each other when loaded.
        import torch._inductor.compile_fx  # noqa: F401
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise RefusedError("engine compiled: torch.compile needs a C++ compiler here; install g++ or clang.") from error


def _compute(wanted: str, saved: str) -> str:
    import torch

    if wanted != "auto":
        return wanted
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "bf16"
    return {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}[saved]


def rounded_up(length: int, least: int) -> int:
    """The shortest of `least`, twice that, and so on that holds `length`."""
    size = least
    while size < length:
        size *= 2
    return size


class _Graphs:
    """Logits from compiled graphs of fixed shapes: rows and tokens are padded, and the padding is cut off again."""

    def __init__(self, module: Any, batch: int, frozen: bool) -> None:
        self._module, self._batch = module, batch
        self._options: dict[str, Any] = {"freezing": frozen, "compile_threads": 1}
        self._read, self._begin, self._next = (self._compiled(f) for f in (self._score, self._prefill, self._step))
        self._past: list[Any] = []
        self._before = 0
        """Slots of the cache that padding takes, before the first token."""
        self._filled = 0

    def prefill(self, ids: Array, positions: Array, mask: Array, keep: int) -> Array:
        rows, width = ids.shape
        length = rounded_up(width, SHORTEST)
        inputs = self._padded(ids, positions, mask, length)
        if keep > 1:
            kept = min(rounded_up(keep, FEWEST), length)
            return self._array(self._read(*inputs, kept))[:rows, -keep:]
        logits, *past = self._begin(*inputs)
        self._before, self._filled = length - width, length
        self._past = [_grown(part, 2 * length) for part in past]
        return self._array(logits)[:rows]

    def step(self, ids: Array, positions: Array, mask: Array) -> Array:
        import torch

        rows = len(ids)
        if self._filled == self._past[0].shape[2]:
            self._past = [_grown(part, 2 * self._filled) for part in self._past]
        seen = np.zeros((self._batch, 1, self._past[0].shape[2]), bool)
        seen[:rows, :, self._before : self._filled + 1] = mask
        whole = [self._rows(each) for each in (ids, positions)]
        at = torch.tensor([self._filled])
        logits = self._next(*map(torch.from_numpy, whole), self._bias(seen), at, *self._past)
        self._filled += 1
        return self._array(logits)[:rows]

    def _padded(self, ids: Array, positions: Array, mask: Array, length: int) -> tuple[Any, Any, Any]:
        import torch

        before = length - ids.shape[1]
        wide = [self._rows(np.pad(each, ((0, 0), (before, 0)))) for each in (ids, positions)]
        seen = self._rows(np.pad(mask, ((0, 0), (before, 0), (before, 0))))
        return torch.from_numpy(wide[0]), torch.from_numpy(wide[1]), self._bias(seen)

    def _rows(self, array: Array) -> Array:
        """The whole batch; rows without a question are empty."""
        rows = [(0, self._batch - len(array)), *((0, 0) for _ in array.shape[1:])]
        whole: Array = np.pad(array, rows)
        return whole

    def _bias(self, seen: Array) -> Any:
        import torch

        dtype = self._module.dtype
        return torch.where(torch.from_numpy(seen)[:, None], 0.0, torch.finfo(dtype).min).to(dtype)

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        import torch

        compiled = torch.compile(function, dynamic=False, fullgraph=True, options=self._options)

        def run(*inputs: Any) -> Any:
            with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=GRAPHS):
                return compiled(*inputs)

        return run

    @staticmethod
    def _array(logits: Any) -> Array:
        array: Array = logits.float().numpy()
        return array

    def _score(self, ids: Any, positions: Any, bias: Any, keep: int) -> Any:
        out = self._module(
            input_ids=ids, position_ids=positions, attention_mask=bias, use_cache=False, logits_to_keep=keep
        )
        return out.logits

    def _prefill(self, ids: Any, positions: Any, bias: Any) -> Any:
        out = self._module(input_ids=ids, position_ids=positions, attention_mask=bias, use_cache=True, logits_to_keep=1)
        return (out.logits, *(part for layer in out.past_key_values.layers for part in (layer.keys, layer.values)))

    def _step(self, ids: Any, positions: Any, bias: Any, at: Any, *past: Any) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache()
        cache.layers = [_slots(*pair, at) for pair in zip(past[::2], past[1::2], strict=True)]
        out = self._module(
            input_ids=ids,
            position_ids=positions,
            attention_mask=bias,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits


def _slots(keys: Any, values: Any, at: Any) -> Any:
    """A layer of a static cache whose next free slot is `at`."""
    from transformers.cache_utils import StaticLayer

    layer = StaticLayer(max_cache_len=keys.shape[2])
    layer.keys, layer.values, layer.is_initialized = keys, values, True
    layer.dtype, layer.device = keys.dtype, keys.device
    layer.cumulative_length = at.clone()
    return layer


def _grown(part: Any, length: int) -> Any:
    """Keys or values (batch, heads, tokens, size) in a longer, empty cache."""
    import torch

    rows, heads, tokens, size = part.shape
    longer = torch.zeros((rows, heads, length, size), dtype=part.dtype)
    longer[:, :, :tokens] = part
    return longer
