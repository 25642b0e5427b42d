"""Seconds and peak memory of every pruner and quantizer on a model of 134 M parameters, beside other libraries.

    python benchmarks/compression.py --out build/compression \
        --peer llmcompressor=/path/to/its/python --peer gptqmodel=/path/to/its/python

Each row is a fresh process, one at a time: from a folder of fp32 weights to a saved folder, import of the libraries
not counted. All tools get the same pieces of text, the same threads and the same sizes of groups. Peers run in
environments of their own, since their pins clash (see compression_peers.py). Rows that are done are not done again.

Errors are relative, means over layers, on other pieces of the text. With X what enters a layer of the dense model, and
X' what enters it in the compressed one: `layer` is |W X - W' X'| / |W X|, what the layer's outputs come to;
`weights` is |(W - W') X| / |W X|, its own part; `logits` is that of the whole model. `left` is the share of the
parameters. Smaller models have other layers, so theirs is the error of the logits alone; with other tokens not even
that. No peer makes them smaller. Prints a Markdown table.

The weights are random with a power-law spectrum: good for time, memory and layer error, and for no quality.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LENGTH = 256
"""Tokens of a piece, as calibration cuts plain text."""
CHECKED = 16
"""Other pieces that errors are taken on."""
METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "magnitude 50 %": ("prune", "magnitude", {"sparsity": 0.5}),
    "magnitude 2:4": ("prune", "magnitude", {"pattern": "2:4"}),
    "wanda 50 %": ("prune", "wanda", {"sparsity": 0.5}),
    "wanda 2:4": ("prune", "wanda", {"pattern": "2:4"}),
    "sparsegpt 50 %": ("prune", "sparsegpt", {"sparsity": 0.5}),
    "sparsegpt 2:4": ("prune", "sparsegpt", {"pattern": "2:4"}),
    "round_to_nearest 4 bits": ("quantize", "round_to_nearest", {"bits": 4, "group": 128}),
    "round_to_nearest 8 bits": ("quantize", "round_to_nearest", {"bits": 8, "group": 128}),
    "gptq 4 bits": ("quantize", "gptq", {"bits": 4, "group": 128}),
    "gptq 8 bits": ("quantize", "gptq", {"bits": 8, "group": 128}),
    "awq 4 bits": ("quantize", "awq", {"bits": 4, "group": 128}),
    "smoothquant 8 bits": ("quantize", "smoothquant", {"bits": 8}),
    "nf4 4 bits": ("quantize", "nf4", {}),
    "width 50 %": ("prune", "width", {"keep": 0.5}),
    "heads 50 %": ("prune", "heads", {"keep": 0.5}),
    "depth, one block": ("prune", "depth", {"remove": 1}),
    "vocabulary": ("prune", "vocabulary", {}),
    "cast bf16": ("quantize", "cast", {}),
}
PEERS = {
    "llmcompressor": (
        *("wanda 50 %", "wanda 2:4", "sparsegpt 50 %", "sparsegpt 2:4"),
        *("round_to_nearest 4 bits", "gptq 4 bits", "gptq 8 bits", "awq 4 bits"),
    ),
    "gptqmodel": ("gptq 4 bits", "gptq 8 bits"),
}


@dataclass(frozen=True)
class Bench:
    """Where it happens and how much of it."""

    out: Path
    layers: int
    samples: int
    threads: int

    @property
    def model(self) -> Path:
        return self.out / f"model-{self.layers}"

    @property
    def pieces(self) -> Path:
        return self.out / f"pieces-{self.layers}-{self.samples}.json"

    def result(self, tool: str, method: str) -> Path:
        name = "".join(c if c.isalnum() else "-" for c in f"{tool} {method}")
        return self.out / f"{name}-{self.layers}-{self.samples}-{self.threads}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peer", action="append", default=[], help="llmcompressor or gptqmodel =python of it")
    parser.add_argument("--layers", type=int, default=12, help="12 are 134 M parameters")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="methods whose name holds this")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # What a fresh process is to do.
    asked = parser.parse_args()
    bench = Bench(asked.out.absolute(), asked.layers, asked.samples, asked.threads)
    if asked.job:
        _JOBS[asked.job.partition(":")[0]](bench, asked.job.partition(":")[2])
        return
    if not bench.pieces.is_file() or not bench.model.is_dir():
        _fresh(bench, sys.executable, _self(bench, "prepare"))
    for tool, method, python in rows(asked.peer, asked.only):
        if not bench.result(tool, method).is_file():
            bench.result(tool, method).write_text(json.dumps(_row(bench, tool, method, python)), encoding="utf-8")
        print(f"{tool}: {method}: {bench.result(tool, method).read_text(encoding='utf-8')[:160]}", file=sys.stderr)
    print(table(bench, rows(asked.peer, asked.only)))


def rows(peers: list[str], only: str) -> Iterator[tuple[str, str, str]]:
    """(tool, method, its python), method by method, ours first."""
    from leanwatt import catalog

    pythons = dict(peer.split("=", 1) for peer in peers)
    for method, (room, name, _) in METHODS.items():
        if only in method and name in catalog.names(room):
            yield "leanwatt", method, sys.executable
            yield from ((tool, method, python) for tool, python in pythons.items() if method in PEERS[tool])


def _row(bench: Bench, tool: str, method: str, python: str) -> dict[str, Any]:
    """Compress in one fresh process, take the errors in another; a tool that fails has its last words as a note."""
    folder = bench.out / "row"
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    ours = _self(bench, f"compress:{method}")
    theirs = [str(Path(__file__).with_name("compression_peers.py")), tool, method, str(bench.model), str(bench.pieces)]
    try:
        spent = _fresh(bench, python, ours if tool == "leanwatt" else [*theirs, str(folder)])
        return spent | _fresh(bench, sys.executable, _self(bench, f"errors:{folder / 'dense.safetensors'}"))
    except subprocess.CalledProcessError as error:
        return {"note": (error.stderr.strip().splitlines() or ["no word"])[-1][:200]}


def _self(bench: Bench, job: str) -> list[str]:
    sizes = {"--layers": bench.layers, "--samples": bench.samples, "--threads": bench.threads}
    return [__file__, "--out", str(bench.out), "--job", job, *(str(x) for pair in sizes.items() for x in pair)]


def _fresh(bench: Bench, python: str, words: list[str]) -> dict[str, Any]:
    """Run in a process of its own; the last line that begins with RESULT has it. Raises CalledProcessError."""
    threads = {name: str(bench.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    environment = {**os.environ, **threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if python != sys.executable:
        environment.pop("PYTHONPATH", None)
    done = subprocess.run([python, *words], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, words, done.stdout, done.stderr)
    *_, last = (line for line in done.stdout.splitlines() if line.startswith("RESULT"))  # Peers talk before and after.
    found: dict[str, Any] = json.loads(last.removeprefix("RESULT"))
    return found


def prepare(bench: Bench, _: str) -> None:
    """The model, its tokenizer, a text, and the pieces of it that every tool calibrates on."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from leanwatt.calibration import sample
    from leanwatt.model import load
    from leanwatt.simulate import simulate
    from leanwatt.starter import tokenizer_of

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=bench.layers,
        num_attention_heads=12,
        vocab_size=32000,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    module = LlamaForCausalLM(config)
    for weight in module.parameters():
        if weight.ndim == 2:
            weight.data = _power_law(*weight.shape)
    module.save_pretrained(bench.model)
    text = "\n".join(row["description"] for row in simulate(400, seed=0, bank="pretraining"))
    (bench.out / "text.txt").write_text(text, encoding="utf-8")
    tokenizer_of([text[:500_000]], 4000).save_pretrained(bench.model)
    found = sample(load(bench.model), _context(bench), bench.samples, str(bench.out / "text.txt"))
    bench.pieces.write_text(json.dumps([piece.ids for piece in found]), encoding="utf-8")
    print("RESULT {}")


def _power_law(rows: int, columns: int) -> Any:
    """Random, with singular values that fall as trained ones do: roughly as i^-0.5."""
    import torch

    turn, _ = torch.linalg.qr(torch.randn(columns, columns))
    sizes = torch.arange(1, columns + 1).float().pow(-0.5)
    return torch.randn(rows, columns) * (sizes * 0.02 / sizes.square().mean().sqrt()) @ turn


def _context(bench: Bench, seed: int = 0) -> Any:
    """Training examples are the lines that calibration reads: what asks for a text takes the text itself."""
    from leanwatt.contracts import Context
    from leanwatt.question import Example, Likelihood

    lines = (bench.out / "text.txt").read_text(encoding="utf-8").splitlines()[: bench.samples]
    train = [Example(str(i), str(i), "train", Likelihood(line), "") for i, line in enumerate(lines)]
    return Context(train, (), seed, bench.out, lambda _text, _share: None)


def compress(bench: Bench, method: str) -> None:
    """Ours: load, compress, save; the clock begins when the libraries are there."""
    import dataclasses

    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM  # noqa: F401

    from leanwatt import catalog
    from leanwatt.model import load
    from leanwatt.recipe import Choice

    torch.set_num_threads(bench.threads)
    room, name, settings = METHODS[method]
    fields = {field.name for field in dataclasses.fields(catalog.find(room, name))}
    reads = {"examples": bench.samples, "text": str(bench.out / "text.txt")}
    step = catalog.build(Choice(room, name, settings | {key: reads[key] for key in fields & reads.keys()}))
    begun, used = time.perf_counter(), time.process_time()
    dense = load(bench.model)
    whole = dense.module.num_parameters()
    model = step.apply(dense, _context(bench))
    model.save(bench.out / "row")
    spent = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - used, "peak_bytes": peak()}
    spent["left"] = model.module.num_parameters() / whole
    (bench.out / "row" / "model.safetensors").rename(bench.out / "row" / "dense.safetensors")
    print("RESULT", json.dumps(spent))


def peak() -> int:
    """Most memory that this process ever held, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def errors(bench: Bench, weights: str) -> None:
    """Share of zeros, and the errors, on pieces that nobody calibrated on."""
    import torch
    from safetensors.torch import load_file

    from leanwatt.calibration import inputs_of, sample
    from leanwatt.model import linears, load, weight_of

    torch.set_num_threads(bench.threads)
    model, changed = load(bench.model), {name: value.float() for name, value in load_file(weights).items()}
    ids = torch.tensor([p.ids for p in sample(model, _context(bench, seed=1), CHECKED, str(bench.out / "text.txt"))])
    layers = linears(model.module)
    if not all(_fits(changed.get(f"{name}.weight"), layer.weight) for name, layer in layers.items()) or not _fits(
        changed.get("lm_head.weight", model.module.lm_head.weight), model.module.lm_head.weight
    ):
        print("RESULT", json.dumps(_of_smaller(model.module, Path(weights).parent, changed, ids)))
        return
    with torch.inference_mode(), inputs_of(layers) as latest:
        logits, x = model.module(ids).logits, dict(latest)
        dense = {name: weight_of(layer).clone() for name, layer in layers.items()}
        norms = [(name, value) for name, value in model.module.named_parameters() if value.ndim == 1]
        is_scaled = any(not torch.equal(changed[name], value) for name, value in norms)
        model.module.load_state_dict(changed, strict=False)
        found: dict[str, float | None] = {"logit_error": _relative(model.module(ids).logits, logits)}
        pairs = {name: (dense[name], weight_of(layer)) for name, layer in layers.items()}
        found["layer_error"] = _mean(_relative(latest[n] @ new.t(), x[n] @ old.t()) for n, (old, new) in pairs.items())
        found["weights_error"] = None  # Scales that moved into a norm leave weights that mean nothing beside the old.
        if not is_scaled:
            alone = (_relative(x[n] @ new.t(), x[n] @ old.t()) for n, (old, new) in pairs.items())
            found["weights_error"] = _mean(alone)
    found["zeros"] = _mean(float((new == 0).float().mean()) for _, new in pairs.values())
    print("RESULT", json.dumps(found))


def _fits(mine: Any, other: Any) -> bool:
    return mine is not None and mine.shape == other.shape


def _of_smaller(dense: Any, folder: Path, changed: Any, ids: Any) -> dict[str, float | None]:
    """Logits alone, and these only where the tokens are the same."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    found: dict[str, float | None] = dict.fromkeys(("logit_error", "layer_error", "weights_error", "zeros"))
    config = AutoConfig.from_pretrained(folder)
    if config.vocab_size == dense.config.vocab_size:
        smaller = AutoModelForCausalLM.from_config(config).eval()
        smaller.load_state_dict(changed)
        with torch.inference_mode():
            found["logit_error"] = _relative(smaller(ids).logits, dense(ids).logits)
    return found


def _relative(got: Any, right: Any) -> float:
    return float((got - right).norm() / right.norm())


def _mean(values: Iterator[float]) -> float:
    return statistics.fmean(values)


def table(bench: Bench, which: Iterator[tuple[str, str, str]]) -> str:
    """All rows that are done."""
    lines = [
        f"{bench.layers} blocks, {bench.samples} x {LENGTH} tokens, {bench.threads} threads, fp32\n",
        "| method | tool | seconds | CPU-s | peak MB | left | zeros | layer | weights | logits |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for tool, method, _ in which:
        row = json.loads(bench.result(tool, method).read_text(encoding="utf-8"))
        if "note" in row:
            lines.append(f"| {method} | {tool} | failed: `{row['note']}` |" + " |" * 7)
            continue
        spent = f"{row['seconds']:.1f} | {row['cpu_seconds']:.1f} | {row['peak_bytes'] / 1e6:.0f}"
        errors_found = (row[name] for name in ("layer_error", "weights_error", "logit_error"))
        lost = " | ".join("-" if each is None else f"{each:.4f}" for each in errors_found)
        shares = " | ".join("-" if row.get(name) is None else f"{row[name]:.1%}" for name in ("left", "zeros"))
        lines.append(f"| {method} | {tool} | {spent} | {shares} | {lost} |")
    return "\n".join(lines)


_JOBS = {"prepare": prepare, "compress": compress, "errors": errors}

if __name__ == "__main__":
    main()
