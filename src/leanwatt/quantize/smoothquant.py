"""SmoothQuant (Xiao et al., 2022, arXiv:2211.10438): outliers move from the activations into the weights.

Some inputs of a layer are a hundred times larger than the others, and eight bits for all of them leave the others none.
Dividing them in the norm before, and multiplying the weights, changes nothing but the rounding. For engines that round
activations too, in groups as they go: openvino and onnxruntime with `activations: int8`, llama_cpp always. Others run
the weights alone, and say so in their facts; there plain rounding is as good. Only what a norm feeds is scaled, as in
the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, final

from annotated_types import Ge, Le

from leanwatt.calibration import Calibrated, Visit, walk
from leanwatt.contracts import Context, Outlook
from leanwatt.model import Model, weight_of
from leanwatt.quantize._codes import foresee_codes, nearest_codes, put_in, whole_layers
from leanwatt.quantize._folding import Fold, fold, folds_of, refuse_without_norms

if TYPE_CHECKING:
    import torch

LEAST = 1e-5
"""Of a largest value: a feature that is never active has no scale to move."""


@final
@dataclass(frozen=True)
class Smoothquant(Calibrated):
    """Move the activations' scales into the weights of the blocks' linear layers, and round these to integers."""

    bits: Literal[8, 4] = 8
    """Size of a stored weight."""
    group: Annotated[int, Ge(0)] = 0
    """Neighbours along the inputs that share a scale; 0 for one scale per row. A layer that the group does not
    divide gets one scale per row."""
    strength: Annotated[float, Ge(0), Le(1)] = 0.5
    """How much of the difficulty moves: 0 leaves all of it in the activations, 1 puts all of it into the weights."""

    version: ClassVar[int] = 2

    def foresee(self, outlook: Outlook) -> None:
        """Codes."""
        foresee_codes(outlook, "smoothquant")

    def apply(self, model: Model, context: Context) -> Model:
        """Smooth and quantize in place, block by block."""
        whole_layers(model, "smoothquant")
        refuse_without_norms(model, "smoothquant")
        for visit in walk(model, self.sample(model, context), context):
            largest = _largest(visit)
            norms = [each for each in folds_of(visit) if each.name is None]
            weights = fold(visit, [(each, self._scale(each, visit, largest)) for each in norms])
            for name, layer in visit.layers.items():
                put_in(model, name, layer, nearest_codes(weights[name], self.bits, self.group))
        model.history.append(f"quantize smoothquant {self.bits} bits, group {self.group}, strength {self.strength}")
        return model

    def _scale(self, each: Fold, visit: Visit, largest: dict[str, torch.Tensor]) -> torch.Tensor:
        """max|x|^strength / max|w|^(1 - strength) of every feature, (features,)."""
        import torch

        inputs = largest[each.layers[0]]
        weights = torch.stack([weight_of(visit.layers[name]).float().abs().amax(0) for name in each.layers]).amax(0)
        scale = inputs.clamp(min=LEAST) ** self.strength / weights.clamp(min=LEAST) ** (1 - self.strength)
        return torch.where((inputs < LEAST) | (weights < LEAST), 1.0, scale)


def _largest(visit: Visit) -> dict[str, torch.Tensor]:
    """Layer -> the largest size of each input feature, (features,)."""
    import torch

    found: dict[str, torch.Tensor] = {}
    for inputs in visit.shared_inputs():
        for names, tensor in inputs.items():
            largest = tensor.float().abs().amax(0)
            found |= {name: torch.maximum(largest, found.get(name, largest)) for name in names}
    return found
