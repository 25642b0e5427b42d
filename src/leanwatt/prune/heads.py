"""Fewer attention heads: a truly smaller model, with a smaller cache, so every engine saves.

A head's score is the size of what it sends on: the norms of its activations over training examples times the norms of
the weights that they meet (Wanda's score, Sun et al., 2023, arXiv:2306.11695, summed over a head; cf. FLAP, An et al.,
2023, arXiv:2312.11983). Where several query heads share a key and value (grouped-query attention, Ainslie et al., 2023,
arXiv:2305.13245) the whole group stays or goes. Long contexts gain most; `width` has more weights to take.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, final

from annotated_types import Gt, Lt

from leanwatt.calibration import Calibrated, input_norms
from leanwatt.contracts import Context, Outlook
from leanwatt.errors import RefusedError
from leanwatt.model import Model, linears, weight_of
from leanwatt.prune._cutting import keep_inputs, keep_outputs, refuse_pattern, refuse_patterns
from leanwatt.prune._masking import whole_weights
from leanwatt.quiet import quiet

if TYPE_CHECKING:
    import torch

_FIXED = {"gpt2": "GPT-2", "gpt_neox": "GPT-NeoX", "opt": "OPT"}
"""transformers takes the size of their heads from the hidden size, so fewer heads would be larger ones."""
_LEAVING = (".self_attn.o_proj", ".self_attn.dense")
"""The layer that leaves attention; `dense` is Phi's."""


@final
@dataclass(frozen=True)
class Heads(Calibrated):
    """Keep the attention heads of each block that contribute most."""

    keep: Annotated[float, Gt(0), Lt(1)]
    """Share of the heads that stays, rounded to whole groups of heads that share a key and value."""

    version: ClassVar[int] = 1

    def foresee(self, outlook: Outlook) -> None:
        """Fewer heads; refused for families and numbers that transformers cannot express, and after an N:M pattern."""
        refuse_pattern(outlook, "heads")
        _note(outlook.config, self._groups(outlook.config))

    def apply(self, model: Model, context: Context) -> Model:
        """Cut the attention layers in place; masks of earlier pruning are cut with them."""
        whole_weights(model, "heads")
        refuse_patterns(model, "heads")
        config, layers = model.module.config, linears(model.module)
        kept, before = self._groups(config), config.num_attention_heads
        leaving = [name for name in layers if name.endswith(_LEAVING)]
        norms = input_norms(model, leaving, self.sample(model, context), context)
        for name in leaving:
            contribution = norms[name] * weight_of(layers[name]).float().norm(dim=0)
            score = contribution.square().view(config.num_key_value_heads, -1).sum(dim=1)
            _cut(model, name, score.topk(kept).indices.sort().values)
        _note(config, kept)
        model.history.append(f"prune heads {before} -> {config.num_attention_heads}")
        return model

    def _groups(self, config: Any) -> int:
        """How many groups stay. Raises RefusedError for what plain transformers could not open."""
        if config.model_type in _FIXED:
            raise RefusedError(
                f"prune heads: transformers cannot express a {_FIXED[config.model_type]} with fewer heads of the same "
                "size. Use width or depth."
            )
        if getattr(config, "qk_layernorm", False):
            raise RefusedError("prune heads: transformers cannot express fewer heads where Phi norms them. Use width.")
        groups = config.num_key_value_heads
        each = config.num_attention_heads // groups
        kept: int = max(1, round(self.keep * groups))
        legal = [count for count in range(1, groups) if _opens(config, count)]
        if kept not in legal:
            shares = ", ".join(f"{count / groups:.4g} ({count * each} heads)" for count in legal) or "none"
            raise RefusedError(
                f"prune heads: keep {self.keep} of {groups * each} heads is {kept * each}, which is all of them or "
                f"which transformers cannot express with a hidden size of {config.hidden_size}. What can be kept: "
                f"{shares}."
            )
        return kept


def _opens(config: Any, groups: int) -> bool:
    """Whether transformers opens this configuration with so many groups: some want a divisor of the hidden size."""
    from huggingface_hub.errors import StrictDataclassError

    tried = deepcopy(config)
    _note(tried, groups)
    try:
        with quiet():
            type(config).from_dict(tried.to_dict())
    except (ValueError, StrictDataclassError):
        return False
    return True


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _note(config: Any, groups: int) -> None:
    """The size of a head is written out, or transformers would derive another one from the fewer heads."""
    each = config.num_attention_heads // config.num_key_value_heads
    config.head_dim = _head_size(config)
    config.num_attention_heads = groups * each
    config.num_key_value_heads = groups


def _cut(model: Model, leaving: str, stay: torch.Tensor) -> None:
    """Keep the groups `stay` in the layer that leaves one attention and in those that enter it."""
    import torch

    config, layers = model.module.config, linears(model.module)
    groups, size = config.num_key_value_heads, _head_size(config)
    each = config.num_attention_heads // groups
    queries, keys = _within(stay, each * size), _within(stay, size)
    keep_inputs(model, leaving, layers[leaving], queries)
    stem = leaving.rpartition(".")[0]
    if f"{stem}.qkv_proj" in layers:  # Phi 3: queries, keys and values in one matrix, one below the other.
        offsets = groups * each * size, groups * (each + 1) * size
        rows = torch.cat([queries, *(keys + offset for offset in offsets)])
        keep_outputs(model, f"{stem}.qkv_proj", layers[f"{stem}.qkv_proj"], rows)
        model.module.get_submodule(stem).num_key_value_heads = len(stay)
        return
    for part, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        keep_outputs(model, f"{stem}.{part}", layers[f"{stem}.{part}"], rows)


def _within(stay: torch.Tensor, size: int) -> torch.Tensor:
    """Places of all members of the groups `stay`, where each group is `size` neighbours."""
    import torch

    return (stay.unsqueeze(1) * size + torch.arange(size)).flatten()
