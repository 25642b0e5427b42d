"""A frozen base in 8 or 4 bits while adapters learn beside it, by the library bitsandbytes, and back again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leanwatt.errors import RefusedError
from leanwatt.model import linears, weight_of


def held_in(precision: str, module: Any) -> Any:
    """Replace the blocks' linear layers by ones that hold their weights in `int8` or `nf4`, in place.

    Raises RefusedError where the library has no kernels for this machine.
    """
    layers = linears(module)
    _try_out(next(iter(layers.values())), precision)
    for name, layer in layers.items():
        module.set_submodule(name, _low(layer, precision))
        layer.weight.data = layer.weight.data.new_empty(0)  # The memory is what this is for.
    setattr(module, _FLAGS[precision], True)  # PEFT chooses its layers by this.
    return module


def _try_out(layer: Any, precision: str) -> None:
    import torch

    columns = weight_of(layer).shape[1]
    try:
        with torch.no_grad():
            _low(layer, precision)(torch.zeros(1, columns, dtype=torch.bfloat16))
    except (RuntimeError, NotImplementedError, AttributeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RefusedError(
            f"finetune lora {precision}: bitsandbytes cannot compute with such weights on this machine ({reason}). Use "
            "bf16 or fp32."
        ) from error


_FLAGS = {"int8": "is_loaded_in_8bit", "nf4": "is_loaded_in_4bit"}


def given_back(tuned: Any, layers: Mapping[str, Any], config: Any) -> Any:
    """The same adapters beside the plain layers, whose weights are now what the codes say, in the dtype they had."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils.integrations import dequantize_module_weight
    from torch import nn

    adapters = {name: value.detach().clone() for name, value in get_peft_model_state_dict(tuned).items()}
    plain = tuned.unload()
    for flag in _FLAGS.values():
        if hasattr(plain, flag):
            delattr(plain, flag)
    for name, layer in layers.items():
        weight = dequantize_module_weight(plain.get_submodule(name)).detach()
        as_kept = weight if isinstance(layer, nn.Linear) else weight.t()
        layer.weight.data = as_kept.to(layer.weight.dtype).contiguous()
        plain.set_submodule(name, layer)
    module = get_peft_model(plain.requires_grad_(False), config)
    set_peft_model_state_dict(module, adapters)
    return module.eval()


def _low(layer: Any, precision: str) -> Any:
    import bitsandbytes
    import torch

    weight = weight_of(layer).contiguous().clone()
    rows, columns = weight.shape
    has_bias = layer.bias is not None
    if precision == "nf4":
        low = bitsandbytes.nn.Linear4bit(columns, rows, has_bias, compute_dtype=torch.bfloat16, quant_type="nf4")
        low.support_avx512bf16_for_cpu = False  # Looks at validation would repack the weights amid training.
        low.weight = bitsandbytes.nn.Params4bit(
            weight, requires_grad=False, quant_type="nf4", blocksize=_block(columns)
        )
    else:
        low = bitsandbytes.nn.Linear8bitLt(columns, rows, has_bias, has_fp16_weights=False, threshold=6.0)
        low.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    if has_bias:
        low.bias = torch.nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return low.to("cpu").requires_grad_(False)


def _block(columns: int) -> int:
    """Weights that share a scale. On CPUs blocks that cross rows come back wrong (bitsandbytes 0.50, seen here)."""
    found = next((size for size in (64, 32) if columns % size == 0), None)
    if found is None:
        raise RefusedError(f"finetune lora nf4: a layer has {columns} inputs; a multiple of 32 is needed. Use int8.")
    return found
