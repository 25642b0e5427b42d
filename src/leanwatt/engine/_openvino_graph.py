"""From a saved model to an OpenVINO graph: cache as state, integer weights as they are."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from leanwatt.engine._stateless import stateless
from leanwatt.engine._tokens import Tokens
from leanwatt.engine._weights import sizes
from leanwatt.errors import RefusedError
from leanwatt.model import Codes, cast, load
from leanwatt.quiet import quiet

VERSION = 3
"""Raise it when the graph changes: models converted before are then converted anew."""
ROUNDED = 32
"""Activations that share a scale where they are rounded to 8 bits."""


def convert(artifact: Path, folder: Path) -> None:
    """Write `model.xml`, `model.bin` and `about.json`. Raises RefusedError for what OpenVINO cannot express."""
    import torch

    model = load(artifact)
    if model.has_adapters:
        raise RefusedError("engine openvino: the model has adapters; put `merge: [merge]` after finetune.")
    cast(model.module, torch.float32)
    with quiet():
        traced, heads = _trace(model.module)
    _put_codes(traced, model.codes)
    ov.save_model(traced, folder / "model.xml", compress_to_fp16=False)
    about = {
        "context": model.context,
        "heads": heads,
        "plain_tokenizer": Tokens.agrees(artifact, model.tokenizer),
        "can_round": _can_round(model.codes),
        "facts": sizes(model, model.codes.values()),
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _trace(module: Any) -> tuple[Any, list[list[int]]]:
    """The graph with named inputs (input_ids, position_ids, mask, keep) and the cache as state."""
    import torch

    wrapped, example, heads = stateless(module)
    layers = len(heads) // 2
    past = [f"{kind}.{i}" for i in range(layers) for kind in ("key", "value")]
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # The tracer warns of every Python value it holds for constant.
        try:
            traced = ov.convert_model(wrapped, example_input=example)
        except (RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise RefusedError(f"engine openvino: {type(module).__name__} cannot be converted ({reason}).") from error
    for port, name in zip(traced.inputs, ["input_ids", "position_ids", "mask", "keep", *past], strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(traced.outputs, ["logits", *(f"new.{name}" for name in past)], strict=True):
        port.get_tensor().set_names({name})
    shapes: dict[str, list[int]] = {
        "input_ids": [-1, -1],
        "position_ids": [-1, -1],
        "mask": [-1, 1, -1, -1],
        "keep": [-1],
    }
    shapes |= {name: [-1, count, -1, size] for name, (count, size) in zip(past, heads, strict=True)}
    traced.reshape(shapes)
    from openvino._offline_transformations import apply_make_stateful_transformation

    apply_make_stateful_transformation(traced, {name: f"new.{name}" for name in past})
    return traced, heads


def _put_codes(traced: Any, codes: dict[str, Codes]) -> None:
    """Replace the weights of quantized layers by their integers. Raises RefusedError where one is not found."""
    replaced = 0
    for node in traced.get_ops():
        if node.get_type_name() != "MatMul":
            continue
        source = node.input_value(1).get_node()
        # The product is named after its layer; the constant is not where it was turned around (GPT-2).
        name = node.get_friendly_name().removeprefix("__module.inner.").partition("/aten::")[0]
        if source.get_type_name() == "Constant" and name in codes:
            node.input(1).replace_source_output(_integers(codes[name], node.get_transpose_b()).output(0))
            replaced += 1
    if replaced != len(codes):
        raise RefusedError(
            f"engine openvino: only {replaced} of {len(codes)} quantized layers were found in the graph."
        )


def _integers(codes: Codes, transposed: bool) -> Any:
    """Codes times scales as a graph, which the CPU's kernels read without unpacking the whole: (rows, columns)."""
    rows, groups = codes.scales.shape
    columns = codes.codes.shape[1]
    constant = _constant(codes, [rows, groups, columns // groups])
    scales = op.constant(codes.scales.numpy()[..., None].astype(np.float32))
    weight = op.multiply(op.convert(constant, "f32"), scales)
    flat = op.reshape(weight, np.array([rows, columns], np.int64), special_zero=False)
    return flat if transposed else op.transpose(flat, np.array([1, 0]))


def _constant(codes: Codes, shape: list[int]) -> Any:
    """As stored: OpenVINO has a type for each kind, and its table of nf4 is the paper's, as ours is."""
    if codes.bits == 8:
        return op.constant(codes.codes.numpy().reshape(shape), ov.Type.i8)
    if codes.levels is not None:
        return op.constant(_packed(codes.places.numpy(), ov.Type.nf4, shape))
    return op.constant(_packed(codes.codes.numpy(), ov.Type.i4, shape))


def _can_round(codes: dict[str, Codes]) -> bool:
    """Whether OpenVINO can round the activations of all these layers; else it multiplies floats and does not say so."""

    def is_rounded(each: Codes) -> bool:
        groups = each.scales.shape[1]
        fits = groups == 1 or each.codes.shape[1] // groups % ROUNDED == 0
        return each.levels is None and fits

    return all(is_rounded(each) for each in codes.values())


def _packed(values: Any, kind: Any, shape: list[int]) -> Any:
    """Two four-bit numbers per byte, the first in the low half, as OpenVINO reads them."""
    flat = values.reshape(-1).astype(np.uint8) & 0xF
    tensor = ov.Tensor(kind, shape)  # Owns its memory: a tensor around our array would outlive the array.
    tensor.data.reshape(-1)[:] = flat[0::2] | (flat[1::2] << 4)
    return tensor


def kernels(compiled: Any) -> dict[str, int]:
    """Which primitives the compiled model's matrix products run on, and how often: what really ran."""
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if info["layerType"].astype(str) in ("FullyConnected", "MatMul"):
            found[f"{info['layerType'].astype(str)} {info['primitiveType'].astype(str)}"] += 1
    return dict(found)
