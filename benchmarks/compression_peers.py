"""One method of another library, for compression.py: runs in that library's own environment, without Leanwatt.

    python benchmarks/compression_peers.py llmcompressor "wanda 50 %" MODEL PIECES.json OUT

Needs `pip install llmcompressor` (0.14) or `pip install gptqmodel==7.6.0`, each with torch 2.13. Prints a line
RESULT with seconds, CPU seconds and peak bytes; then leaves in OUT/dense.safetensors the weights that it computes with.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    tool, method, model, pieces, out = sys.argv[1:]
    ids = json.loads(Path(pieces).read_text(encoding="utf-8"))
    run = {"llmcompressor": llmcompressor, "gptqmodel": gptqmodel}[tool]
    Path(out).mkdir(parents=True, exist_ok=True)
    weights = run(method, model, ids, out)
    from safetensors.torch import save_file

    save_file({name: weight.contiguous() for name, weight in weights.items()}, Path(out) / "dense.safetensors")


def llmcompressor(method: str, folder: str, ids: list[list[int]], out: str) -> dict[str, Any]:
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401

    recipe = _recipe(method)
    pieces = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(each) for each in ids]})
    clock = _Clock()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=pieces,
        recipe=recipe,
        max_seq_length=len(ids[0]),
        num_calibration_samples=len(ids),
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(out, save_compressed=True)
    tokenizer.save_pretrained(out)
    clock.tell()
    return _dense(model, out)


def _recipe(method: str) -> Any:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
    from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform import AWQModifier

    half = {"sparsity": 0.5, "targets": ["Linear"], "ignore": ["re:.*lm_head"]}
    bits = {"targets": ["Linear"], "ignore": ["re:.*lm_head"]}
    return {
        "wanda 50 %": lambda: WandaPruningModifier(mask_structure="0:0", **half),
        "wanda 2:4": lambda: WandaPruningModifier(mask_structure="2:4", **half),
        "sparsegpt 50 %": lambda: SparseGPTModifier(mask_structure="0:0", **half),
        "sparsegpt 2:4": lambda: SparseGPTModifier(mask_structure="2:4", **half),
        "round_to_nearest 4 bits": lambda: QuantizationModifier(scheme="W4A16", **bits),
        "gptq 4 bits": lambda: GPTQModifier(scheme="W4A16", **bits),
        "gptq 8 bits": lambda: GPTQModifier(scheme="W8A16", **bits),
        "awq 4 bits": lambda: [AWQModifier(), QuantizationModifier(scheme="W4A16", **bits)],
    }[method]()


def _dense(model: Any, out: str) -> dict[str, Any]:
    """What was saved, opened again and decompressed."""
    import torch
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    with torch.inference_mode():
        again(torch.tensor([[3, 4]]))  # Packed weights are decompressed by the first run.
    return {name: weight.float() for name, weight in again.state_dict().items() if name.endswith("proj.weight")}


def gptqmodel(method: str, folder: str, ids: list[list[int]], out: str) -> dict[str, Any]:
    import gptqmodel
    import torch

    gptqmodel._default_cpu_workers = lambda: 2  # 7.6 asks for two workers and then has one where there are two cores.
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig, extension

    extension.load("pack_block_cpu")  # Compiled on first use; that is no part of compressing.
    clock = _Clock()
    model = GPTQModel.load(folder, QuantizeConfig(bits=4 if "4 bits" in method else 8, group_size=128), device="cpu")
    model.quantize([{"input_ids": each, "attention_mask": [1] * len(each)} for each in ids], batch_size=16)
    model.save(out)
    clock.tell()
    torch._dynamo.config.disable = True  # Opened again only to read its weights.
    again = GPTQModel.load(out, backend=BACKEND.TORCH, device="cpu")
    return {
        f"model.layers.{name.partition('layers.')[2]}.weight": layer.dequantize_weight().t().float()
        for name, layer in again.model.named_modules()
        if hasattr(layer, "dequantize_weight")
    }


class _Clock:
    """Wall and CPU seconds since it was made, without pauses."""

    def __init__(self) -> None:
        self.begun, self.used = time.perf_counter(), time.process_time()

    def tell(self) -> None:
        spent = {"seconds": time.perf_counter() - self.begun, "cpu_seconds": time.process_time() - self.used}
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
        print("\nRESULT", json.dumps(spent | {"peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
