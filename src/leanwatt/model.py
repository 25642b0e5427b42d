"""A model in memory: module, tokenizer, masks and integer codes; loading, saving, finding its linear layers.

A saved model is a folder that plain `from_pretrained` opens (dense weights, dequantized). Beside it lie, where there
are any, `masks.safetensors` (which weights pruning keeps), `codes.safetensors` (what quantization stores), `adapter/`
(LoRA) and `leanwatt.json` (what was done).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanwatt.errors import ModelError, RefusedError, StoreError
from leanwatt.quiet import quiet

if TYPE_CHECKING:
    import torch
    from torch import nn

_BLOCKS = ("model.layers", "transformer.h", "gpt_neox.layers", "model.decoder.layers")
"""Where families keep their decoder blocks: Llama, Mistral, Qwen, Gemma, Phi, SmolLM; GPT-2; GPT-NeoX; OPT."""
FAMILIES = "Llama, Mistral, Qwen2, Qwen3, Gemma, Phi, SmolLM, GPT-2, GPT-NeoX, OPT"
_TYPES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "smollm3"),
    *("gpt2", "gpt_neox", "opt"),
)
"""What these families are called in a configuration; SmolLM 1 and 2 are Llamas."""


@dataclass(frozen=True)
class Codes:
    """A quantized weight: `weight = values * scales`, per row and group of columns. A code of 0 is exactly 0."""

    codes: torch.Tensor
    """int8, (rows, columns)."""
    scales: torch.Tensor
    """float32, (rows, groups)."""
    bits: int
    levels: torch.Tensor | None = None
    """float32, (2 ** bits,), rising: the values of codes that are no integers, as in nf4. Code 0 is the level 0, -1 the
    one below it. None where a code is its own value: who multiplies codes as integers must look here first."""

    @property
    def kind(self) -> str:
        """`int8`, `int4` or `nf4`."""
        return f"int{self.bits}" if self.levels is None else f"nf{self.bits}"

    @property
    def places(self) -> torch.Tensor:
        """int64, (rows, columns): where each weight's value stands in `levels`, from 0."""
        if self.levels is None:
            raise ValueError(f"{self.kind} codes are integers: there is no table of levels to look them up in.")
        return self.codes.long() + int((self.levels == 0).nonzero())

    @property
    def weight(self) -> torch.Tensor:
        """float32, (rows, columns)."""
        rows, groups = self.scales.shape
        values = self.codes.float() if self.levels is None else self.levels[self.places]
        return (values.view(rows, groups, -1) * self.scales.unsqueeze(-1)).view(rows, -1)

    @property
    def bytes(self) -> int:
        """Size as served: packed codes, and scales of 16 bits."""
        return self.codes.numel() * self.bits // 8 + self.scales.numel() * 2


@dataclass
class Model:
    """What steps work on. Keys of `masks` and `codes` are names of linear layers as in `linears`."""

    module: Any
    """A transformers causal language model, or a PEFT model around one."""
    tokenizer: Any
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    """bool, the shape of the weight: True is kept, False is zero and stays so."""
    patterns: dict[str, str] = field(default_factory=dict)
    """The N:M pattern that a mask keeps, where it keeps one."""
    codes: dict[str, Codes] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    """Steps so far, in words."""
    base_parameters: int | None = None
    """Weights of the base that the steps began with, where it is known: fewer are left in a smaller model."""

    @property
    def has_adapters(self) -> bool:
        """True before `merge`: LoRA's weights stand beside the model's."""
        return hasattr(self.module, "peft_config")

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return context_length(self.module.config)

    def save(self, folder: Path) -> None:
        """Write all of it; every promise of masks and codes is checked first. Raises StoreError, RefusedError."""
        check(self)
        try:
            self._write(folder)
        except OSError as error:
            raise StoreError(f"{folder}: the model cannot be saved ({error.strerror or error}).") from error

    def _write(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            if self.has_adapters:
                self.module.save_pretrained(folder / "adapter")
                base = self.module.get_base_model()
                base.save_pretrained(folder, state_dict=_without_adapters(base.state_dict()))
            else:
                self.module.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.masks:
            save_file({name: mask.contiguous() for name, mask in self.masks.items()}, folder / "masks.safetensors")
        if self.codes:
            save_file(_flat(self.codes), folder / "codes.safetensors")
        about = {
            "history": self.history,
            "patterns": self.patterns,
            "bits": {name: codes.bits for name, codes in self.codes.items()},
            "adapters": self.has_adapters,
            "base_parameters": self.base_parameters,
        }
        (folder / "leanwatt.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def load(base: str | Path, revision: str | None = None, **placing: Any) -> Model:
    """A model with all that was saved beside it, or any Hugging Face causal language model.

    Weights are read from safetensors only, and no code of a model is ever run. `placing` goes to `from_pretrained`:
    `device_map`, so that a model larger than one device is never whole on any, and `dtype` with it. Raises ModelError.
    """
    module, tokenizer = _load_plain(str(base), revision, placing)
    model = Model(module, tokenizer, base_parameters=count(module))
    folder = Path(base)
    if (folder / "leanwatt.json").is_file():
        _load_beside(model, folder)
    return model


def _load_plain(base: str, revision: str | None, placing: Mapping[str, Any]) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings: dict[str, Any] = {"trust_remote_code": False, "revision": revision or "main"}
    try:
        with quiet():
            weights = {"use_safetensors": True, "dtype": "auto", **placing}
            module = AutoModelForCausalLM.from_pretrained(base, **weights, **settings)
            tokenizer = AutoTokenizer.from_pretrained(base, **settings)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"base: '{base}' cannot be loaded as a causal language model with safetensors weights ({reason}). "
            "Give a Hugging Face folder or hub name, or `starter`."
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"base: the tokenizer of '{base}' has no end-of-text token; answers could not end.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return module.eval(), tokenizer


def _load_beside(model: Model, folder: Path) -> None:
    from safetensors.torch import load_file

    about = json.loads((folder / "leanwatt.json").read_text(encoding="utf-8"))
    model.history = about["history"]
    model.patterns = about["patterns"]
    model.base_parameters = about.get("base_parameters")
    if (folder / "masks.safetensors").is_file():
        model.masks = {name: mask.bool() for name, mask in load_file(folder / "masks.safetensors").items()}
    if (folder / "codes.safetensors").is_file():
        flat = load_file(folder / "codes.safetensors")
        model.codes = {
            name: Codes(flat[f"{name}.codes"], flat[f"{name}.scales"], bits, flat.get(f"{name}.levels"))
            for name, bits in about["bits"].items()
        }
    if about["adapters"]:
        with quiet():
            from peft import PeftModel

            model.module = PeftModel.from_pretrained(model.module, str(folder / "adapter")).eval()


def config_of(base: str, revision: str | None = None) -> Any:
    """The configuration of a base, without its weights. Raises ModelError where it is no causal language model."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, revision=revision or "main")
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"base: '{base}' is no model folder and no model of the hub ({reason}).") from error
    if not _is_causal(config):
        kind = ", ".join([*(config.architectures or []), config.model_type])
        raise ModelError(f"base: '{base}' is a '{kind}' model, which is no causal language model.")
    return config


def refuse_unknown_family(config: Any) -> None:
    """Pruning and quantization know these families only: others keep weights where nobody looked for them."""
    if config.model_type not in _TYPES:
        raise RefusedError(f"A '{config.model_type}' model is none of the families that are known here: {FAMILIES}.")


def _is_causal(config: Any) -> bool:
    """Whether its weights are those of a causal language model: BERT can be run as one, and then writes nonsense."""
    from transformers.models.auto import modeling_auto as known

    causal = known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    sees_both_sides = config.model_type in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if causal is None or (sees_both_sides and not getattr(config, "is_decoder", False)):
        return False
    return not config.architectures or causal in config.architectures


def context_length(config: Any) -> int:
    """Most tokens of prompt and answer together: those the model was built for, and no more than its window holds.

    Where layers see only a sliding window of tokens, all of them see all within it. Beyond it engines would differ.
    """
    names = ("max_position_embeddings", "n_positions", "n_ctx")
    most = next((int(getattr(config, name)) for name in names if getattr(config, name, None)), 2048)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return min(most, int(window)) if window else most


def inner_size(config: Any) -> int:
    """Neurons of an MLP, under whatever name a family keeps them."""
    sizes = (getattr(config, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner"))
    return int(next((size for size in sizes if size), 4 * config.hidden_size))


def blocks(module: Any) -> nn.ModuleList:
    """The decoder blocks, in order. Raises RefusedError for a family that is not known here."""
    for path in _BLOCKS:
        try:
            return module.get_submodule(path)  # type: ignore[no-any-return]
        except AttributeError:
            continue
    raise RefusedError(f"{type(module).__name__}: where its blocks are is not known. Known families: {FAMILIES}.")


def linears(module: Any) -> dict[str, Any]:
    """The linear layers of the decoder blocks, by full name: what pruning and quantization work on."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    within = blocks(module)
    prefix = next(name for name, child in module.named_modules() if child is within)
    found = {f"{prefix}.{name}": layer for name, layer in within.named_modules()}
    return {name: layer for name, layer in found.items() if isinstance(layer, nn.Linear | Conv1D)}


def weight_of(layer: Any) -> torch.Tensor:
    """A view of a linear layer's weight as (outputs, inputs); GPT-2 keeps it the other way round."""
    return _by_output(layer, layer.weight.data)


def _by_output(layer: Any, values: torch.Tensor) -> torch.Tensor:
    from transformers.pytorch_utils import Conv1D

    return values.t() if isinstance(layer, Conv1D) else values


def accelerator() -> str:
    """Where a model computes: `cuda` where torch sees an NVIDIA GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def placed(model: Model, device: str) -> Iterator[None]:
    """Module and masks on a device while open, and back in main memory afterwards, where all else expects them."""
    if device == "cpu":
        yield
        return
    try:
        _move(model, device)
        yield
    finally:
        _move(model, "cpu")


def _move(model: Model, device: str) -> None:
    model.module.to(device)
    model.masks = {name: mask.to(device) for name, mask in model.masks.items()}


def cast(module: Any, dtype: torch.dtype) -> Any:
    """Parameters in another dtype, in place. Buffers stay: rotary frequencies in bf16 would be another model."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module


def keep_zeros(model: Model) -> None:
    """Set every masked weight to zero again."""
    if not model.masks:
        return
    layers = linears(model.module)
    for name, mask in model.masks.items():
        weight_of(layers[name]).mul_(mask)


def mask_gradients(model: Model) -> None:
    """Take the gradients of masked weights away: what cannot move must not count where gradients are clipped."""
    layers = linears(model.module) if model.masks else {}
    for name, mask in model.masks.items():
        gradient = layers[name].weight.grad
        if gradient is not None:
            _by_output(layers[name], gradient).mul_(mask)


def check(model: Model) -> None:
    """What masks and codes promise holds: zeros are zero, N:M is N:M, weights are what the codes say.

    Raises RefusedError and names the layer.
    """
    if not model.masks and not model.codes:
        return
    layers = linears(model.module)
    for name, mask in model.masks.items():
        if ((weight_of(layers[name]) != 0) > mask).any():
            raise RefusedError(f"{name}: weights that pruning removed are no longer zero.")
        if name in model.patterns and not _fits(mask, model.patterns[name]):
            raise RefusedError(f"{name}: the mask no longer keeps the pattern {model.patterns[name]}.")
    for name, codes in model.codes.items():
        weight = weight_of(layers[name])
        if not weight.equal(codes.weight.to(weight.dtype)):
            raise RefusedError(f"{name}: the weights are no longer those of the integer codes.")


def weight_facts(model: Model) -> dict[str, Any]:
    """How many weights, and of how many; which share of the pruned layers is zero, in which pattern, in which codes."""
    zeros = sum(int((~mask).sum()) for mask in model.masks.values())
    masked = sum(mask.numel() for mask in model.masks.values())
    return {
        "parameters": count(model.module),
        "base_parameters": model.base_parameters,
        "sparsity": zeros / masked if masked else 0.0,
        "pattern": next(iter(model.patterns.values()), None),
        "codes_bits": next((codes.bits for codes in model.codes.values()), None),
        "codes_kind": next((codes.kind for codes in model.codes.values()), None),
    }


def count(module: Any) -> int:
    """Weights of a module, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _fits(mask: torch.Tensor, pattern: str) -> bool:
    import torch

    kept, group = map(int, pattern.split(":"))
    places = mask.view(torch.uint8).view(mask.shape[0], -1, group).unbind(-1)
    return bool((reduce(torch.add, places) <= kept).all())


def _without_adapters(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace(".base_layer.", "."): w for name, w in weights.items() if ".lora_" not in name}


def _flat(codes: Mapping[str, Codes]) -> dict[str, torch.Tensor]:
    flat: dict[str, torch.Tensor] = {}
    for name, each in codes.items():
        flat[f"{name}.codes"], flat[f"{name}.scales"] = each.codes.contiguous(), each.scales.contiguous()
        if each.levels is not None:
            flat[f"{name}.levels"] = each.levels.clone()  # One table for all layers; the file wants them apart.
    return flat
