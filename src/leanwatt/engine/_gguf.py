"""From a saved model to a GGUF file: the families whose tensors llama.cpp names, integer codes as its own block types.

The file holds no vocabulary: tokens are made here, the same for every engine. Names come from the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leanwatt.engine._weights import symmetric
from leanwatt.errors import RefusedError
from leanwatt.model import Codes, Model, context_length, linears, weight_of

VERSION = 1
"""Raise it when the file changes: models converted before are then converted anew."""
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}
"""transformers' model type -> llama.cpp's."""
BLOCK = 32
"""Weights that share a scale in llama.cpp's plain block types."""


@dataclass(frozen=True)
class Written:
    """What became of the codes."""

    taken: dict[str, Codes]
    """Layers whose integers are in the file, exactly or quantized again."""
    requantized: int
    """How many of these were quantized again, since scale or group did not fit."""


def write(model: Model, path: Path, dtype: str) -> Written:
    """Write the file with dense weights in `dtype` (fp32, fp16, bf16). Raises RefusedError for other families."""
    import gguf

    config = model.module.config
    _refuse_unknown(config)
    name = ARCHITECTURES[config.model_type]
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
    writer = gguf.GGUFWriter(str(path), name)
    _describe(writer, config, next(iter(model.module.get_input_embeddings().parameters())).shape[0])
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    codes, again = symmetric(model), 0
    for key, tensor in _tensors(model):
        target = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise RefusedError(f"engine llama_cpp: it has no place for the tensor {key} of a {config.model_type}.")
        layer = key.removesuffix(".weight")
        order = _order(config, layer, len(tensor))
        if layer in codes and tensor.shape[1] % BLOCK == 0:
            data, kind, is_exact = _coded(codes[layer], order)
            again += not is_exact
        else:
            codes.pop(layer, None)
            data, kind = _dense(tensor[order], dtype)
        writer.add_tensor(target, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Written(codes, again)


def _refuse_unknown(config: Any) -> None:
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise RefusedError(f"engine llama_cpp: {config.model_type} is not written as GGUF here; families: {known}.")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise RefusedError(f"engine llama_cpp: rotary scaling '{rope['rope_type']}' is not written as GGUF here.")


def _describe(writer: Any, config: Any, words: int) -> None:
    """The numbers that llama.cpp needs to build the graph."""
    heads = config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(words)
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    if config.model_type == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_rope_dimension_count(size)
    writer.add_key_length(size)
    writer.add_value_length(size)


def _tensors(model: Model) -> Iterator[tuple[str, Any]]:
    """Name and values (rows = outputs first) of every tensor; a tied head is not there twice."""
    turned = {f"{name}.weight": weight_of(layer) for name, layer in linears(model.module).items()}
    embedding = model.module.get_input_embeddings().weight
    for name, tensor in model.module.state_dict().items():
        if name == "lm_head.weight" and tensor.data_ptr() == embedding.data_ptr():
            continue
        yield name, turned.get(name, tensor)


def _order(config: Any, layer: str, rows: int) -> Any:
    """Order of the rows: llama.cpp turns neighbouring pairs where transformers turns halves, for this family."""
    order = np.arange(rows)
    part = layer.removesuffix(".bias").rpartition(".")[2]
    if ARCHITECTURES[config.model_type] != "llama" or part not in ("q_proj", "k_proj"):
        return order
    heads = config.num_attention_heads if part == "q_proj" else config.num_key_value_heads
    return order.reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def _dense(tensor: Any, dtype: str) -> tuple[Any, Any]:
    """Matrices in `dtype`; vectors and positions stay in fp32, as llama.cpp wants them."""
    import gguf
    import torch

    kinds = gguf.GGMLQuantizationType
    whole = tensor.float().contiguous()
    if whole.dim() < 2 or dtype == "fp32":
        return whole.numpy(), kinds.F32
    if dtype == "fp16":
        return whole.half().numpy(), kinds.F16
    bits = whole.to(torch.bfloat16).view(torch.uint16).numpy()
    return bits.view(np.uint8), kinds.BF16


def _coded(codes: Codes, order: Any) -> tuple[Any, Any, bool]:
    """Blocks of 32 with a scale of 16 bits: bytes (rows, bytes of a row), their type, whether they are our codes."""
    import gguf

    kind = {8: gguf.GGMLQuantizationType.Q8_0, 4: gguf.GGMLQuantizationType.Q4_0}[codes.bits]
    rows, columns = codes.codes.shape
    scales = codes.scales.numpy().astype(np.float32)
    if (columns // scales.shape[1]) % BLOCK or not (scales.astype(np.float16) == scales).all():
        return gguf.quants.quantize(codes.weight.numpy()[order], kind), kind, False
    repeated = np.repeat(scales, columns // BLOCK // scales.shape[1], axis=1).astype(np.float16)[order]
    values = codes.codes.numpy()[order].reshape(rows, -1, BLOCK)
    packed = _packed(values, codes.bits)
    blocks = np.concatenate([repeated[..., None].view(np.uint8), packed], axis=-1)
    return blocks.reshape(rows, -1), kind, True


def _packed(values: Any, bits: int) -> Any:
    """Bytes of each block: at four bits the first half lies in the low halves of the bytes, the second in the high."""
    if bits == 8:
        return values.view(np.uint8)
    shifted = (values + 8).astype(np.uint8)
    return shifted[..., : BLOCK // 2] | (shifted[..., BLOCK // 2 :] << 4)
