"""Fewer neurons in every MLP: a truly smaller model, so every engine saves.

A neuron's score is the size of what it sends on: the norm of its activation over training examples times the norm of
its outgoing weights (the structured form of Wanda's score, Sun et al., 2023, arXiv:2306.11695; see also An et al.,
2023, arXiv:2312.11983).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, final

from annotated_types import Ge, Gt, Lt

from leanwatt.calibration import Calibrated, input_norms
from leanwatt.contracts import Context, Outlook
from leanwatt.errors import RefusedError
from leanwatt.model import FAMILIES, Model, blocks, inner_size, linears, weight_of
from leanwatt.prune._cutting import keep_inputs, keep_outputs, refuse_pattern, refuse_patterns
from leanwatt.prune._masking import whole_weights

if TYPE_CHECKING:
    import torch

_MLPS = (
    ("down_proj", ("gate_proj", "up_proj")),  # Llama, Mistral, Qwen, Gemma, SmolLM
    ("down_proj", ("gate_up_proj",)),  # Phi 3: both in one matrix, one below the other
    ("fc2", ("fc1",)),  # OPT, Phi
    ("dense_4h_to_h", ("dense_h_to_4h",)),  # GPT-NeoX
    ("mlp.c_proj", ("mlp.c_fc",)),  # GPT-2
)
"""The layer that leaves an MLP, and those that enter it."""
_SIZES = ("intermediate_size", "ffn_dim", "n_inner")


@final
@dataclass(frozen=True)
class Width(Calibrated):
    """Keep the neurons of each MLP that contribute most."""

    keep: Annotated[float, Gt(0), Lt(1)]
    """Share of the neurons that stays."""
    multiple: Annotated[int, Ge(1)] = 16
    """The new width is rounded to a multiple of this, which kernels like."""

    version: ClassVar[int] = 1

    def foresee(self, outlook: Outlook) -> None:
        """A smaller MLP; refused where nothing would go, and after an N:M pattern."""
        refuse_pattern(outlook, "width")
        _note_width(outlook.config, self._width(inner_size(outlook.config)))

    def apply(self, model: Model, context: Context) -> Model:
        """Cut the MLPs in place; masks of earlier pruning are cut with them."""
        whole_weights(model, "width")
        refuse_patterns(model, "width")
        leaving, layers = _mlps(model), linears(model.module)
        size = inner_size(model.module.config)
        width = self._width(size)
        norms = input_norms(model, leaving, self.sample(model, context), context)
        for name, entering in leaving.items():
            score = norms[name] * weight_of(layers[name]).float().norm(dim=0)
            stay = score.topk(width).indices.sort().values
            keep_inputs(model, name, layers[name], stay)
            for other in entering:
                keep_outputs(model, other, layers[other], _rows(stay, size, layers[other]))
        _note_width(model.module.config, width)
        model.history.append(f"prune width {size} -> {width}")
        return model

    def _width(self, size: int) -> int:
        """The new number of neurons. Raises RefusedError where it would be no smaller."""
        width = max(self.multiple, round(self.keep * size / self.multiple) * self.multiple)
        if width >= size:
            raise RefusedError(f"prune width: keep {self.keep} of {size} neurons is all of them in {self.multiple}s.")
        return width


def _mlps(model: Model) -> dict[str, Sequence[str]]:
    """Name of the layer that leaves each MLP -> names of the layers that enter the same MLP."""
    layers = linears(model.module)
    found: dict[str, Sequence[str]] = {
        name: [name.removesuffix(last) + first for first in firsts]
        for last, firsts in _MLPS
        for name in layers
        if name.endswith(f".{last}") and name.removesuffix(last) + firsts[0] in layers
    }
    if len(found) != len(blocks(model.module)):
        raise RefusedError(f"prune width: the MLPs of {type(model.module).__name__} are not known. Known: {FAMILIES}.")
    return found


def _rows(stay: torch.Tensor, size: int, layer: Any) -> torch.Tensor:
    """The outputs of an entering layer that belong to the neurons `stay`, once per part that is stacked in it."""
    import torch

    parts = weight_of(layer).shape[0] // size
    return torch.cat([stay + part * size for part in range(parts)])


def _note_width(config: Any, width: int) -> None:
    """Write the new size where this family keeps it, so that plain transformers opens the folder."""
    name = next((size for size in _SIZES if hasattr(config, size)), None)
    if name is None:
        raise RefusedError(f"prune width: {type(config).__name__} has no field for the width of an MLP.")
    setattr(config, name, width)
