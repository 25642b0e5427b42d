"""llama.cpp on CPUs, through llama-cpp-python, from GGUF files that are written here.

Eight- and four-bit codes become its blocks Q8_0 and Q4_0 as they are where groups and scales fit, else the record says
re-quantized; such blocks are multiplied with activations rounded to 8 bits. Its AMX path crashes on some CPUs
(ggml-org/llama.cpp issue 20824) and is switched off. Run with llama-cpp-python 0.3.36 on a CPU with AVX-512: random
Llama, Qwen3 and GPT-2 models of two blocks and two trained ones below a million parameters agree with the reference.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from leanwatt.contracts import Engine
from leanwatt.engine import _gguf
from leanwatt.engine._asking import Array, Asking
from leanwatt.engine._stateless import converted
from leanwatt.engine._tokens import Tokens
from leanwatt.engine._weights import Ran, facts, sizes
from leanwatt.errors import RefusedError, require
from leanwatt.machine import usable_cpus
from leanwatt.model import load
from leanwatt.prompt import Encoder

F32, F16 = 0, 1
"""ggml's numbers for the cache's types."""
ROOM = 2048
"""Cells of the cache beside those of whole contexts: options lie beside each other, after one prompt."""
FIRST = 1024
"""Cells that the cache begins with; it is doubled when a question needs more, and stays as large as it was once. With
fewer cells than sequences (256) llama.cpp ends the process."""


@final
@dataclass(frozen=True)
class LlamaCpp(Engine):
    """Run a model through llama.cpp on the CPU."""

    compute: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """What weights without codes are stored in; auto is fp16."""
    threads: int = 0
    """0 for all cores."""

    def __post_init__(self) -> None:
        require("llama_cpp", "engine", "llama_cpp")
        require("gguf", "engine", "llama_cpp")

    @contextmanager
    def open(self, artifact: Path, batch: int) -> Iterator[Asking]:
        """Write the file if that has not been done, and load it. Raises RefusedError for what it cannot take."""
        import llama_cpp as native

        if batch > (most := native.llama_max_parallel_sequences()):
            raise RefusedError(f"engine llama_cpp: it writes at most {most} answers at once; take a smaller batch.")
        compute = "fp16" if self.compute == "auto" else self.compute
        made = artifact / f"llama_cpp-{_gguf.VERSION}-{compute}"
        folder = converted(made, lambda draft: _convert(artifact, draft, compute))
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        encoder = Encoder(Tokens.open(artifact, plain=about["plain_tokenizer"]), about["context"])
        with _Native.opened(folder / "model.gguf", batch, about, self.threads or max(1, int(usable_cpus()))) as backend:
            yield Asking(backend, encoder, batch, _facts(about, folder))


def _convert(artifact: Path, folder: Path, compute: str) -> None:
    model = load(artifact)
    if model.has_adapters:
        raise RefusedError("engine llama_cpp: the model has adapters; put `merge: [merge]` after finetune.")
    written = _gguf.write(model, folder / "model.gguf", compute)
    about = {
        "context": model.context,
        "words": model.module.get_input_embeddings().weight.shape[0],
        "compute": compute,
        "plain_tokenizer": Tokens.agrees(artifact, model.tokenizer),
        "requantized": written.requantized > 0,
        "facts": sizes(model, written.taken.values()),
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _facts(about: dict[str, Any], folder: Path) -> dict[str, Any]:
    import llama_cpp as native

    compute, bits = about["compute"], about["facts"]["codes_bits"] if about["facts"]["coded_layers"] else None
    ran = Ran(
        engine=f"llama_cpp {native.__version__}",
        compute=compute,
        kernel=f"int{bits} weights, int8" if bits else f"dense {compute}",
        files=(folder / "model.gguf",),
        activations="int8" if bits else "float",
        requantized=about["requantized"],
    )
    return facts(about["facts"], ran)


def branches(mask: Array) -> list[list[int]]:
    """For each token of one row (tokens, tokens) the branches that it is part of; padding is in none.

    A branch ends in a token that no later one sees, and holds all that this one sees: an option with its prompt.
    """
    tokens = len(mask)
    is_seen = [bool(mask[place + 1 :, place].any()) for place in range(tokens)]
    ends = [place for place in range(tokens) if mask[place, place] and not is_seen[place]]
    return [[number for number, end in enumerate(ends) if mask[end, place]] for place in range(tokens)]


@dataclass
class _Batch:
    """Tokens to compute at once."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    sequences: list[list[int]] = field(default_factory=list)
    wanted: list[tuple[int, int] | None] = field(default_factory=list)
    """Row and place where a token's logits go; None where nobody asks for them."""

    def add(self, other: _Batch) -> None:
        """Tokens that stand after these; nobody asks for their logits again."""
        self.tokens += other.tokens
        self.positions += other.positions
        self.sequences += other.sequences
        self.wanted += [None] * len(other.tokens)


class _Native:
    """Logits from llama.cpp's context. A branch of a row is one of its sequences; tokens of a prompt are in several."""

    def __init__(self, model: Any, batch: int, about: dict[str, Any], threads: int) -> None:
        self._model, self._compute, self._threads = model, about["compute"], threads
        self._words: int = about["words"]
        self._most: int = batch * about["context"] + ROOM
        """Cells that may be needed."""
        self._cells = self._sequences = 0
        self._context: Any = None
        self._past = _Batch()
        """What the cache holds."""
        self._first: list[int] = []
        """The sequence of each row, for the steps."""

    @classmethod
    @contextmanager
    def opened(cls, path: Path, batch: int, about: dict[str, Any], threads: int) -> Iterator[_Native]:
        """Load the file, and give all memory back."""
        import llama_cpp as native

        silent = native.llama_log_callback(lambda _level, _text, _data: None)
        native.llama_log_set(silent, None)
        native.llama_backend_init()
        how = native.llama_model_default_params()
        how.n_gpu_layers = 0
        how.use_extra_bufts = False  # The AMX path among them ends the process on some CPUs.
        model = native.llama_model_load_from_file(str(path).encode(), how)
        if not model:
            raise RuntimeError(f"engine llama_cpp: {path} was not loaded.")
        opened = cls(model, batch, about, threads)
        try:
            opened._make_room(1)
            yield opened
        finally:
            opened._free()
            native.llama_model_free(model)

    def _free(self) -> None:
        import llama_cpp as native

        if self._context:
            native.llama_free(self._context)
        self._context = None

    def _make_room(self, cells: int) -> None:
        """A cache of so many cells or more; what the smaller one held is computed again, all at once.

        A cache for whole contexts would take gigabytes that no ticket fills.
        """
        import llama_cpp as native

        if cells <= self._cells:
            return
        size = max(FIRST, self._cells)
        while size < cells:
            size *= 2
        self._free()
        settings = _settings(native, min(size, self._most), self._compute, self._threads)
        self._context = native.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError("engine llama_cpp: no context could be made; is there too little memory?")
        self._cells, self._sequences = settings.n_ctx, settings.n_seq_max
        if self._past.tokens:
            self._decode(self._past, np.zeros((0, 0, self._words), np.float32))

    def prefill(self, ids: Array, positions: Array, mask: Array, keep: int) -> Array:
        rows, width = ids.shape
        logits = np.zeros((rows, keep, self._words), np.float32)
        self._first = []
        for group in self._groups([branches(each) for each in mask]):
            self._forget()
            self._make_room(sum(sum(map(bool, sequences)) for _, _, sequences in group))
            batch = _Batch()
            for row, first, sequences in group:
                self._first.append(first)
                for place in (place for place in range(width) if sequences[place]):
                    batch.tokens.append(int(ids[row, place]))
                    batch.positions.append(int(positions[row, place]))
                    batch.sequences.append([first + number for number in sequences[place]])
                    kept = place - (width - keep)
                    batch.wanted.append((row, kept) if kept >= 0 else None)
            self._take(batch, logits)
        return logits

    def step(self, ids: Array, positions: Array, mask: Array) -> Array:
        rows = len(ids)
        logits = np.zeros((rows, 1, self._words), np.float32)
        sequences = [[first] for first in self._first]
        wanted: list[tuple[int, int] | None] = [(row, 0) for row in range(rows)]
        self._make_room(len(self._past.tokens) + rows)
        self._take(_Batch(ids[:, 0].tolist(), positions[:, 0].tolist(), sequences, wanted), logits)
        return logits

    def _take(self, batch: _Batch, logits: Array) -> None:
        self._decode(batch, logits)
        self._past.add(batch)

    def _groups(self, rows: Sequence[list[list[int]]]) -> Iterator[list[tuple[int, int, list[list[int]]]]]:
        """Rows with their first sequence, as many together as there are sequences and cells."""
        group: list[tuple[int, int, list[list[int]]]] = []
        used = filled = 0
        for row, sequences in enumerate(rows):
            needed, cells = 1 + max(max(each) for each in sequences if each), sum(map(bool, sequences))
            if needed > self._sequences or cells > self._most:
                raise RefusedError(
                    f"engine llama_cpp: a question with {needed} options and {cells} tokens; it has room for "
                    f"{self._sequences} options and {self._most} tokens."
                )
            if used + needed > self._sequences or filled + cells > self._most:
                yield group
                group, used, filled = [], 0, 0
            group.append((row, used, sequences))
            used, filled = used + needed, filled + cells
        yield group

    def _forget(self) -> None:
        import llama_cpp as native

        native.llama_memory_clear(native.llama_get_memory(self._context), True)
        self._past = _Batch()

    def _decode(self, batch: _Batch, logits: Array) -> None:
        """Compute, and put the logits asked for into their places."""
        import llama_cpp as native

        count = len(batch.tokens)
        handed = native.llama_batch_init(count, 0, max(map(len, batch.sequences)))
        try:
            handed.n_tokens = count
            for place in range(count):
                handed.token[place], handed.pos[place] = batch.tokens[place], batch.positions[place]
                handed.n_seq_id[place] = len(batch.sequences[place])
                for number, sequence in enumerate(batch.sequences[place]):
                    handed.seq_id[place][number] = sequence
                handed.logits[place] = batch.wanted[place] is not None
            if status := native.llama_decode(self._context, handed):
                raise RuntimeError(f"engine llama_cpp: llama_decode gave {status} for {count} tokens.")
        finally:
            native.llama_batch_free(handed)
        for place, target in enumerate(batch.wanted):
            if target is not None:
                found = native.llama_get_logits_ith(self._context, place)
                logits[target] = np.ctypeslib.as_array(found, (self._words,))


def _settings(native: Any, cells: int, compute: str, threads: int) -> Any:
    """One cache for all sequences, so that options share their prompt's place in it."""
    settings = native.llama_context_default_params()
    settings.n_ctx = settings.n_batch = cells
    settings.n_seq_max = native.llama_max_parallel_sequences()
    settings.kv_unified = True
    settings.n_threads = settings.n_threads_batch = threads
    settings.type_k = settings.type_v = F32 if compute == "fp32" else F16
    if compute == "fp32":
        settings.flash_attn_type = 0  # It would round to 16 bits.
    return settings
