"""Plain transformers on torch: the reference that every other engine is checked against.

On an NVIDIA GPU `sparse: true` multiplies 2:4 masks with torch's semi-structured kernels, and `devices: all` loads a
model that is larger than one GPU straight onto several. Neither has been run on several GPUs yet: the first is tested
with stand-ins, the second with layers in memory and on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, final

from leanwatt.contracts import Engine
from leanwatt.engine._asking import Array, Asking
from leanwatt.engine._weights import BYTES, Ran, facts, safetensors, sizes
from leanwatt.errors import RefusedError
from leanwatt.model import Model, accelerator, cast, linears, load
from leanwatt.prompt import Encoder

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@final
@dataclass(frozen=True)
class Transformers(Engine):
    """Run a model eagerly. Runs everything, saves little."""

    compute: Literal["auto", "fp32", "bf16"] = "auto"
    """What it multiplies in; auto takes the dtype that the weights are saved in."""
    sparse: bool = False
    """Multiply 2:4 masks with kernels that skip the zeros: bf16 on an NVIDIA GPU of 2020 or later."""
    devices: Literal["one", "all"] = "one"
    """all spreads the layers over all GPUs, and what does not fit there over the CPU's memory."""

    uses_gpu: ClassVar[bool] = True
    takes_adapters: ClassVar[bool] = True

    @contextmanager
    def open(self, artifact: Path, batch: int) -> Iterator[Asking]:
        """Load the folder into memory. Raises RefusedError where 2:4 kernels are asked for and cannot be had."""
        import torch

        dtype: Any = {"auto": "auto", "fp32": torch.float32, "bf16": torch.bfloat16}[self.compute]
        device = accelerator()
        if self.devices == "all":
            model = load(artifact, device_map="auto", dtype=dtype)
        else:
            model = load(artifact)
            if dtype != "auto":
                cast(model.module, dtype)
            model.module.to(device)
        skipped = _with_sparse_kernels(model, device) if self.sparse else 0
        encoder = Encoder(model.tokenizer, model.context)
        told = _facts(model, artifact, skipped) | ({"devices": _placed(model.module)} if self.devices == "all" else {})
        yield Asking(_Torch(model.module, device), encoder, batch, told)


def _placed(module: Any) -> list[str]:
    """The devices that layers lie on: `cuda:0`, `cpu`, `disk`; there is a map only where they are several."""
    places = {str(place) for place in getattr(module, "hf_device_map", {"": module.device}).values()}
    return sorted(f"cuda:{place}" if place.isdigit() else place for place in places)


def _with_sparse_kernels(model: Model, device: str) -> int:
    """Store every 2:4 layer as its kernels want it; how many weights that are. Raises RefusedError."""
    import torch
    from torch import nn

    names = [name for name, pattern in model.patterns.items() if pattern == "2:4"]
    layers = {name: layer for name, layer in linears(model.module).items() if name in names}
    if device != "cuda":
        raise RefusedError("engine transformers: sparse needs an NVIDIA GPU; there are no 2:4 kernels for CPUs.")
    if not layers or not all(isinstance(layer, nn.Linear) for layer in layers.values()):
        raise RefusedError("engine transformers: sparse needs linear layers with 2:4 masks: prune with pattern: '2:4'.")
    if model.module.dtype == torch.float32:
        raise RefusedError("engine transformers: 2:4 kernels multiply 16 bits; set compute: bf16.")
    for layer in layers.values():
        packed = torch.sparse.to_sparse_semi_structured(layer.weight.data)
        layer.weight = nn.Parameter(packed, requires_grad=False)
    return sum(model.masks[name].numel() for name in layers)


class _Torch:
    """Logits from a torch module with its own cache."""

    def __init__(self, module: Any, device: str) -> None:
        self._module, self._device = module, device
        self._past: Any = None

    def prefill(self, ids: Array, positions: Array, mask: Array, keep: int) -> Array:
        self._past = None
        return self._run(ids, positions, mask, keep, cache=keep == 1)

    def step(self, ids: Array, positions: Array, mask: Array) -> Array:
        return self._run(ids, positions, mask, 1, cache=True)

    def kept(self, ids: Array, positions: Array, mask: Array) -> list[tuple[Any, Any]]:
        """Keys and values of every layer, each (1, heads, tokens, size)."""
        self.prefill(ids, positions, mask, 1)
        return [(layer.keys, layer.values) for layer in self._past.layers]

    def prefill_after(self, kept: list[tuple[Any, Any]], ids: Array, positions: Array, mask: Array, keep: int) -> Array:
        from transformers import DynamicCache

        rows = len(ids)
        self._past = DynamicCache([tuple(part.expand(rows, -1, -1, -1) for part in layer) for layer in kept])
        return self._run(ids, positions, mask, keep, cache=True)

    def _run(self, ids: Array, positions: Array, mask: Array, keep: int, *, cache: bool) -> Array:
        import torch

        dtype = self._module.dtype
        hidden = torch.finfo(dtype).min
        seen = torch.where(torch.from_numpy(mask)[:, None], 0.0, hidden).to(dtype)
        with torch.inference_mode():
            out = self._module(
                input_ids=torch.from_numpy(ids).to(self._device),
                position_ids=torch.from_numpy(positions).to(self._device),
                attention_mask=seen.to(self._device),
                past_key_values=self._past,
                use_cache=cache,
                logits_to_keep=keep,
            )
        self._past = out.past_key_values if cache else None
        logits: Array = out.logits.float().cpu().numpy()
        return logits


def _facts(model: Model, artifact: Path, skipped: int) -> dict[str, Any]:
    compute = DTYPES[str(model.module.dtype).removeprefix("torch.")]
    kernel = f"2:4 sparse {compute}" if skipped else f"dense {compute}"
    told = facts(sizes(model, []), Ran("transformers", compute, kernel, safetensors(artifact)))
    # Two of four values and four bits that say which: 36 bits instead of 64.
    return {**told, "weight_bytes": told["weight_bytes"] - skipped * BYTES[compute] * 7 // 16}
