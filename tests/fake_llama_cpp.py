"""A stand-in for the binding `llama_cpp`: cells with positions and sequences as llama.cpp keeps them, torch underneath.

A token sees the cells that share its first sequence and stand at or before its place: that is llama.cpp's rule.
"""

import ctypes
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

SEQUENCES = 64


def decode(context: Any, batch: Any) -> int:
    import torch

    new = range(len(context.cells), len(context.cells) + batch.n_tokens)
    for place in range(batch.n_tokens):
        sequences = batch.seq_id[place][: batch.n_seq_id[place]]
        assert sequences and max(sequences) < context.settings.n_seq_max
        context.cells.append((batch.token[place], batch.pos[place], sequences))
    assert len(context.cells) <= context.settings.n_ctx
    if context.fails:
        return 1
    first = np.array([sequences[0] for _, _, sequences in context.cells])
    position = np.array([at for _, at, _ in context.cells])
    holds = np.array([[s in sequences for _, _, sequences in context.cells] for s in first])
    seen = torch.from_numpy(holds & (position[None, :] <= position[:, None]))
    with torch.inference_mode():
        out = context.module(
            input_ids=torch.tensor([[token for token, _, _ in context.cells]]),
            position_ids=torch.from_numpy(position)[None],
            attention_mask=torch.where(seen, 0.0, -1e9)[None, None],
            use_cache=False,
        )
    rows = out.logits[0].float().numpy()
    context.logits = {i: rows[cell] for i, cell in enumerate(new) if batch.logits[i]}
    return 0


def batch_of(count: int, _embedding: int, most: int) -> Any:
    lists = {name: [0] * count for name in ("token", "pos", "n_seq_id", "logits")}
    return SimpleNamespace(**lists, n_tokens=0, seq_id=[[0] * most for _ in range(count)])


def load_file(path: bytes, settings: Any) -> Any:
    from leanwatt.model import load

    assert settings.use_extra_bufts is False, "its AMX path crashes"
    return load(Path(path.decode()).parent.parent).module.float()


def logits_of(context: Any, place: int) -> Any:
    row = context.logits[place]
    return (ctypes.c_float * len(row))(*row)


def fake() -> ModuleType:
    module = ModuleType("llama_cpp")
    module.__spec__ = ModuleSpec("llama_cpp", None)
    members: dict[str, Any] = {
        "__version__": "0.fake",
        "fails": False,
        "freed": [],
        "llama_log_callback": lambda function: function,
        "llama_log_set": lambda callback, _data: callback(0, b"", None),
        "llama_backend_init": lambda: None,
        "llama_model_default_params": SimpleNamespace,
        "llama_model_load_from_file": load_file,
        "llama_max_parallel_sequences": lambda: SEQUENCES,
        "llama_context_default_params": SimpleNamespace,
        "llama_init_from_model": lambda model, settings: SimpleNamespace(
            module=model, settings=settings, cells=[], logits={}, fails=module.fails
        ),
        "llama_get_memory": lambda context: context.cells,
        "llama_memory_clear": lambda cells, _data: cells.clear(),
        "llama_batch_init": batch_of,
        "llama_batch_free": lambda _batch: None,
        "llama_decode": decode,
        "llama_get_logits_ith": logits_of,
        "llama_free": lambda _context: module.freed.append("context"),
        "llama_model_free": lambda _model: module.freed.append("model"),
    }
    for name, value in members.items():
        setattr(module, name, value)
    return module


def install(monkeypatch: Any) -> ModuleType:
    module = fake()
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    return module
