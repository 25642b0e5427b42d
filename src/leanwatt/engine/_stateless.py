"""A model with its cache as plain inputs and outputs: what graph converters trace; and a converted model kept once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from leanwatt.cache import draft_of
from leanwatt.engine._asking import Array

HIDDEN = -1e9
"""Added to a score that must not be seen."""


def feed(ids: Array, positions: Array, mask: Array, keep: int) -> dict[str, Array]:
    """The inputs of a converted model but for its cache; `keep` of the last tokens are asked for their logits."""
    tokens = ids.shape[1]
    return {
        "input_ids": ids,
        "position_ids": positions,
        "mask": np.where(mask[:, None], np.float32(0), np.float32(HIDDEN)),
        "keep": np.arange(tokens - keep, tokens),
    }


def converted(folder: Path, convert: Callable[[Path], None]) -> Path:
    """`folder` with what `convert` writes; renamed into place when whole. Of several made at once one is kept."""
    if not folder.is_dir():
        with draft_of(folder) as draft:
            convert(draft)
            try:
                draft.replace(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    return folder


def stateless(module: Any) -> tuple[Any, tuple[Any, ...], list[list[int]]]:
    """The model with its cache as plain inputs and outputs, an example call, (heads, size) of every cache tensor."""
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    class Stateless(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, input_ids: Any, position_ids: Any, mask: Any, keep: Any, *past: Any) -> Any:
            cache = DynamicCache()
            cache.layers = [_layer(*pair) for pair in zip(past[::2], past[1::2], strict=True)]
            out = self.inner(
                input_ids=input_ids,
                position_ids=position_ids,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=keep,
            )
            flat = [part for layer in out.past_key_values.layers for part in (layer.keys, layer.values)]
            return (out.logits, *flat)

    def _layer(keys: Any, values: Any) -> Any:
        layer = DynamicLayer()
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        layer.dtype, layer.device = keys.dtype, keys.device
        return layer

    batch, tokens, before = 2, 3, 2
    ids = torch.ones((batch, tokens), dtype=torch.long)
    first = module(input_ids=ids[:, :before], use_cache=True).past_key_values
    past = [part.clone() for layer in first.layers for part in (layer.keys, layer.values)]
    example = (
        ids,
        torch.arange(before, before + tokens).repeat(batch, 1),
        torch.zeros((batch, 1, tokens, before + tokens)),
        torch.tensor([tokens - 2, tokens - 1]),
        *past,
    )
    return Stateless().eval(), example, [[part.shape[1], part.shape[3]] for part in past]
