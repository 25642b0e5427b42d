"""Fewer neurons in every MLP: a truly smaller model, so every engine saves.

A neuron's score is the size of what it sends on: the norm of its activation over training examples times the norm of
its outgoing weights (the structured form of Wanda's score, Sun et al., 2023, arXiv:2306.11695; see also An et al.,
2023, arXiv:2312.11983).
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

from annotated_types import Ge, Gt, Lt

from leanwatt.calibration import input_norms
from leanwatt.contracts import Context, Step
from leanwatt.errors import RefusedError
from leanwatt.model import FAMILIES, Model, blocks, linears, weight_of
from leanwatt.prune._masking import whole_weights

_MLPS = {
    "down_proj": ("gate_proj", "up_proj"),  # Llama, Mistral, Qwen, Gemma, SmolLM
    "fc2": ("fc1",),  # OPT, Phi
    "dense_4h_to_h": ("dense_h_to_4h",),  # GPT-NeoX
    "mlp.c_proj": ("mlp.c_fc",),  # GPT-2
}
"""The layer that leaves an MLP, and those that enter it."""
_SIZES = ("intermediate_size", "ffn_dim", "n_inner")


@final
@dataclass(frozen=True)
class Width(Step):
    """Keep the neurons of each MLP that contribute most."""

    keep: Annotated[float, Gt(0), Lt(1)]
    """Share of the neurons that stays."""
    multiple: Annotated[int, Ge(1)] = 16
    """The new width is rounded to a multiple of this, which kernels like."""
    examples: Annotated[int, Ge(1)] = 128
    """Training examples that the activations are taken from."""

    version: ClassVar[int] = 1
    reads_data: ClassVar[bool] = True

    def apply(self, model: Model, context: Context) -> Model:
        """Cut the MLPs in place; masks of earlier pruning are cut with them."""
        whole_weights(model, "width")
        leaving = _leaving(model)
        size = next(iter(leaving.values()))[0].shape[1]
        width = max(self.multiple, round(self.keep * size / self.multiple) * self.multiple)
        if width >= size:
            raise RefusedError(f"prune width: keep {self.keep} of {size} neurons is all of them in {self.multiple}s.")
        norms = input_norms(model, {name: layer for name, (_, layer, _) in leaving.items()}, context, self.examples)
        for name, (weight, layer, entering) in leaving.items():
            score = norms[name] * weight.float().norm(dim=0)
            stay = score.topk(width).indices.sort().values
            _cut(model, name, layer, stay, inputs=True)
            for other, other_layer in entering.items():
                _cut(model, other, other_layer, stay, inputs=False)
        _note_width(model.module.config, width)
        model.history.append(f"prune width {size} -> {width}")
        return model


def _leaving(model: Model) -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    """Name of the layer that leaves each MLP -> its weight, itself, and the layers that enter the same MLP."""
    found, layers = {}, linears(model.module)
    for name, layer in layers.items():
        for last, firsts in _MLPS.items():
            if name.endswith(f".{last}"):
                stem = name.removesuffix(last)
                found[name] = (weight_of(layer), layer, {stem + first: layers[stem + first] for first in firsts})
    if len(found) != len(blocks(model.module)):
        raise RefusedError(f"prune width: the MLPs of {type(model.module).__name__} are not known. Known: {FAMILIES}.")
    return found


def _cut(model: Model, name: str, layer: Any, stay: Any, *, inputs: bool) -> None:
    """Keep some inputs (or outputs) of one linear layer, of its bias and of its mask."""
    import torch
    from transformers.pytorch_utils import Conv1D

    is_conv = isinstance(layer, Conv1D)
    layer.weight = torch.nn.Parameter(layer.weight.data.index_select(1 if inputs != is_conv else 0, stay))
    if not inputs and layer.bias is not None:
        layer.bias = torch.nn.Parameter(layer.bias.data.index_select(0, stay))
    if is_conv:
        layer.nx, layer.nf = layer.weight.shape
    else:
        layer.out_features, layer.in_features = layer.weight.shape
    if name in model.masks:
        model.masks[name] = model.masks[name].index_select(1 if inputs else 0, stay)
        if inputs and name in model.patterns:
            raise RefusedError("prune width after an N:M pattern would break the pattern; put width first.")


def _note_width(config: Any, width: int) -> None:
    """Write the new size where this family keeps it, so that plain transformers opens the folder."""
    name = next((size for size in _SIZES if hasattr(config, size)), None)
    if name is None:
        raise RefusedError(f"prune width: {type(config).__name__} has no field for the width of an MLP.")
    setattr(config, name, width)
