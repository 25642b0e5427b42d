"""From a saved model to an ONNX graph: cache as inputs and outputs, integer weights as they are."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leanwatt.engine._stateless import stateless
from leanwatt.engine._tokens import Tokens
from leanwatt.engine._weights import sizes, symmetric
from leanwatt.errors import RefusedError
from leanwatt.model import Codes, cast, load
from leanwatt.quiet import quiet

VERSION = 1
"""Raise it when the graph changes: models converted before are then converted anew."""
OPSET = 18
SMALLEST, LARGEST = 16, 256
"""Weights that may share a scale in one block of the runtime's kernels: powers of two between these."""
EXACT, ROUNDED = 1, 4
"""The runtime's `accuracy_level`: activations stay in fp32, or become 8-bit integers."""


def convert(artifact: Path, folder: Path, *, rounded: bool) -> None:
    """Write `model.onnx` with its weights and `about.json`. Raises RefusedError for what cannot be traced."""
    import onnx
    import torch

    model = load(artifact)
    if model.has_adapters:
        raise RefusedError("engine onnxruntime: the model has adapters; put `merge: [merge]` after finetune.")
    cast(model.module, torch.float32)
    heads = _trace(model.module, folder / "traced.onnx")
    traced = onnx.load(str(folder / "traced.onnx"))
    for file in folder.iterdir():
        file.unlink()  # Large models come in many files; they are written again as one.
    taken = {name: codes for name, codes in symmetric(model).items() if _block(codes)}
    _put_codes(traced.graph, taken, ROUNDED if rounded else EXACT)
    traced.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(traced, str(folder / "model.onnx"), save_as_external_data=True, location="weights.bin")
    about = {
        "context": model.context,
        "heads": heads,
        "plain_tokenizer": Tokens.agrees(artifact, model.tokenizer),
        "facts": sizes(model, taken.values()),
        "primitives": Counter(n.op_type for n in traced.graph.node if n.op_type in ("MatMul", "Gemm", "MatMulNBits")),
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _trace(module: Any, path: Path) -> list[list[int]]:
    """Write the graph; (heads, size) of every cache tensor."""
    import torch

    wrapped, example, heads = stateless(module)
    past = [f"past.{i}" for i in range(len(heads))]
    axes = {
        "input_ids": {0: "batch", 1: "tokens"},
        "position_ids": {0: "batch", 1: "tokens"},
        "mask": {0: "batch", 2: "tokens", 3: "all"},
        "keep": {0: "kept"},
        **{name: {0: "batch", 2: "before"} for name in past},
    }
    outputs = ["logits", *(f"new.{name}" for name in past)]
    with warnings.catch_warnings(), torch.inference_mode(), quiet():
        warnings.simplefilter("ignore")  # The tracer warns of every Python value it holds for constant.
        try:
            torch.onnx.export(
                wrapped,
                example,
                str(path),
                input_names=list(axes),
                output_names=outputs,
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise RefusedError(
                f"engine onnxruntime: {type(module).__name__} cannot be converted ({reason})."
            ) from error
    return heads


def _block(codes: Codes) -> int | None:
    """Weights per block: the group's largest power of two, since a block may repeat its neighbour's scale."""
    groups = codes.scales.shape[1]
    group = codes.codes.shape[1] // groups
    size = min(group & -group, LARGEST)
    if size >= SMALLEST:
        return size
    return 32 if groups == 1 else None  # A row of one scale may be padded to whole blocks.


def _put_codes(traced: Any, codes: Mapping[str, Codes], accuracy: int) -> None:
    """Replace products with quantized layers by integer kernels. Raises RefusedError if one is missing."""
    from onnx import helper

    replaced, kept = 0, []
    for node in traced.node:
        name = _layer(node.name, codes)
        if node.op_type not in ("MatMul", "Gemm") or name is None:
            kept.append(node)
            continue
        product = f"{node.name}/product" if node.op_type == "Gemm" else node.output[0]
        kept.append(_product(traced, name, codes[name], (node.input[0], product), accuracy))
        if node.op_type == "Gemm":
            kept.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], f"{node.name}/bias"))
        replaced += 1
    if replaced != len(codes):
        raise RefusedError(
            f"engine onnxruntime: only {replaced} of {len(codes)} quantized layers were found in the graph."
        )
    del traced.node[:]
    traced.node.extend(kept)
    _drop_unused(traced)


def _layer(node: str, codes: Mapping[str, Codes]) -> str | None:
    """The quantized layer that a node belongs to: OPT's graph leaves the first part of its name out."""
    path = node.removeprefix("/inner/").rpartition("/")[0].replace("/", ".")
    return next((name for name in (path, f"model.{path}") if name in codes), None)


def _product(traced: Any, name: str, codes: Codes, ends: tuple[str, str], accuracy: int) -> Any:
    from onnx import helper, numpy_helper

    size = _block(codes)
    assert size is not None, "only codes that fit are taken"
    blocks, scales = _blocks(codes, size)
    weights = {f"{name}.codes": _packed(blocks, codes.bits), f"{name}.scales": scales.reshape(-1)}
    traced.initializer.extend(numpy_helper.from_array(array, key) for key, array in weights.items())
    rows, columns = codes.codes.shape
    return helper.make_node(
        "MatMulNBits",
        [ends[0], *weights],
        [ends[1]],
        f"{name}/MatMulNBits",
        domain="com.microsoft",
        K=columns,
        N=rows,
        bits=codes.bits,
        block_size=size,
        accuracy_level=accuracy,
    )


def _blocks(codes: Codes, size: int) -> tuple[Any, Any]:
    """Unsigned integers (rows, blocks, size), half of their range standing for zero; scales (rows, blocks)."""
    rows, columns = codes.codes.shape
    count = -(-columns // size)
    padded = np.zeros((rows, count * size), np.int16)
    padded[:, :columns] = codes.codes.numpy()
    scales = codes.scales.numpy().astype(np.float32)
    shared = np.repeat(scales, count // scales.shape[1], axis=1)
    return (padded + 2 ** (codes.bits - 1)).astype(np.uint8).reshape(rows, count, size), shared


def _packed(blocks: Any, bits: int) -> Any:
    """Two four-bit numbers per byte, the first in the low half."""
    return blocks if bits == 8 else blocks[..., 0::2] | (blocks[..., 1::2] << 4)


def _drop_unused(traced: Any) -> None:
    """The dense weights that integers replaced need no room."""
    used = {name for node in traced.node for name in node.input}
    kept = [each for each in traced.initializer if each.name in used]
    del traced.initializer[:]
    traced.initializer.extend(kept)
