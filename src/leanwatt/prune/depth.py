"""Fewer blocks: the ones that change their input least go (ShortGPT, Men et al., 2024, arXiv:2403.03853).

A truly smaller model, in memory and in joules, in every engine. Small models have few blocks to spare.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

from annotated_types import Ge

from leanwatt.calibration import Calibrated, block_influence
from leanwatt.contracts import Context, Outlook
from leanwatt.errors import RefusedError
from leanwatt.model import Model, blocks
from leanwatt.prune._masking import whole_weights

_LISTS = ("layer_types", "no_rope_layers")
"""What a configuration lists block by block: the kind of attention (Qwen, Gemma 2 and 3), where SmolLM 3 rotates."""


@final
@dataclass(frozen=True)
class Depth(Calibrated):
    """Remove whole decoder blocks."""

    remove: Annotated[int, Ge(1)] = 1
    """How many blocks go."""

    version: ClassVar[int] = 2

    def foresee(self, outlook: Outlook) -> None:
        """Fewer blocks; which ones the data say."""
        if "masks" in outlook.left:
            raise RefusedError(_AFTER_MASKS)
        count = outlook.config.num_hidden_layers
        self._refuse(outlook.config, count)
        _note_depth(outlook.config, range(count - self.remove, count), count - self.remove)

    def apply(self, model: Model, context: Context) -> Model:
        """Remove the blocks in place."""
        whole_weights(model, "depth")
        if model.masks:
            raise RefusedError(_AFTER_MASKS)
        stack = blocks(model.module)
        self._refuse(model.module.config, len(stack))
        influence = block_influence(model, self.sample(model, context), context)
        gone = sorted(range(len(stack)), key=lambda i: influence[i])[: self.remove]
        for place in sorted(gone, reverse=True):
            del stack[place]
        _renumber(stack)
        _note_depth(model.module.config, gone, len(stack))
        model.history.append(f"prune depth, blocks {sorted(gone)} gone")
        return model

    def _refuse(self, config: Any, count: int) -> None:
        if self.remove >= count:
            raise RefusedError(f"prune depth: the model has {count} blocks; at most {count - 1} can go.")
        if getattr(config, "scale_attn_by_inverse_layer_idx", False):
            raise RefusedError(
                "prune depth: this GPT-2 scales attention by the number of the block, so a block that moves up would "
                "compute something else. Use width."
            )


_AFTER_MASKS = (
    "prune depth after another pruning would rename its masks; put depth first, or insist with `merge: [dense]` "
    "between them, which gives the zeros up."
)


def _renumber(stack: Any) -> None:
    """Attention layers know their place, by which the cache is kept."""
    for place, block in enumerate(stack):
        for part in block.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = place


def _note_depth(config: Any, gone: Sequence[int], left: int) -> None:
    config.num_hidden_layers = left
    for name in _LISTS:
        each = getattr(config, name, None)
        if each:
            setattr(config, name, [kind for place, kind in enumerate(each) if place not in gone])
