"""Fewer blocks: the ones that change their input least go (ShortGPT, Men et al., 2024, arXiv:2403.03853).

A truly smaller model, in memory and in joules, in every engine. Small models have few blocks to spare.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

from annotated_types import Ge

from leanwatt.calibration import block_influence
from leanwatt.contracts import Context, Step
from leanwatt.errors import RefusedError
from leanwatt.model import Model, blocks
from leanwatt.prune._masking import whole_weights

_COUNTS = ("num_hidden_layers", "n_layer")


@final
@dataclass(frozen=True)
class Depth(Step):
    """Remove whole decoder blocks."""

    remove: Annotated[int, Ge(1)] = 1
    """How many blocks go."""
    examples: Annotated[int, Ge(1)] = 128
    """Training examples that the influence is measured on."""

    version: ClassVar[int] = 1
    reads_data: ClassVar[bool] = True

    def apply(self, model: Model, context: Context) -> Model:
        """Remove the blocks in place."""
        whole_weights(model, "depth")
        if model.masks:
            raise RefusedError("prune depth after another pruning would rename its masks; put depth first.")
        stack = blocks(model.module)
        if self.remove >= len(stack):
            raise RefusedError(f"prune depth: the model has {len(stack)} blocks; at most {len(stack) - 1} can go.")
        influence = block_influence(model, context, self.examples)
        gone = sorted(range(len(stack)), key=lambda i: influence[i])[: self.remove]
        for place in sorted(gone, reverse=True):
            del stack[place]
        _renumber(stack)
        _note_depth(model.module.config, gone, len(stack))
        model.history.append(f"prune depth, blocks {sorted(gone)} gone")
        return model


def _renumber(stack: Any) -> None:
    """Attention layers know their place, by which the cache is kept."""
    for place, block in enumerate(stack):
        for part in block.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = place


def _note_depth(config: Any, gone: list[int], left: int) -> None:
    for name in _COUNTS:
        if hasattr(config, name):
            setattr(config, name, left)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        config.layer_types = [kind for place, kind in enumerate(kinds) if place not in gone]
