"""Plain transformers on torch: the reference that every other engine is checked against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from leanwatt.contracts import Engine
from leanwatt.engine._asking import Array, Asking
from leanwatt.model import Model, cast, load, weight_facts
from leanwatt.prompt import Encoder


@final
@dataclass(frozen=True)
class Transformers(Engine):
    """Run a model eagerly. Runs everything, saves little."""

    compute: Literal["auto", "fp32", "bf16"] = "auto"
    """What it multiplies in; auto takes the dtype that the weights are saved in."""

    @contextmanager
    def open(self, artifact: Path, batch: int) -> Iterator[Asking]:
        """Load the folder into memory."""
        import torch

        model = load(artifact)
        if self.compute != "auto":
            cast(model.module, {"fp32": torch.float32, "bf16": torch.bfloat16}[self.compute])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        module = model.module.to(device)
        yield Asking(_Torch(module, device), Encoder(model.tokenizer, model.context), batch, _facts(model))


class _Torch:
    """Logits from a torch module with its own cache."""

    def __init__(self, module: Any, device: str) -> None:
        self._module, self._device, self._past = module, device, None

    def prefill(self, ids: Array, positions: Array, mask: Array, keep: int) -> Array:
        self._past = None
        return self._run(ids, positions, mask, keep, cache=keep == 1)

    def step(self, ids: Array, positions: Array, mask: Array) -> Array:
        return self._run(ids, positions, mask, 1, cache=True)

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


def _facts(model: Model) -> dict[str, Any]:
    compute = str(model.module.dtype).removeprefix("torch.")
    return {
        **weight_facts(model),
        "engine": "transformers",
        "weight_dtype": compute,
        "compute_dtype": compute,
        "kernel": f"dense {compute}",
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.module.parameters()),
        "requantized": False,
    }


def relative_error(got: Array, expected: Array) -> float:
    """Size of the difference over the size of what is right."""
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
