"""Fewer tokens: those that neither the training texts nor other texts' bytes need go, from tokenizer and embeddings.

Training texts are encoded as before, and any other text still round-trips, in more and smaller tokens. In small models
embeddings are a large part of the weights, and every generated token is chosen among all that are left (cf. Abdaoui et
al., 2020, arXiv:2010.05609). Where new tickets hold many words that old ones did not, they grow longer; `extra` keeps
more of the commonest tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, final

from annotated_types import Ge

from leanwatt.contracts import Context, Outlook, Step
from leanwatt.errors import RefusedError
from leanwatt.lesson import lessons
from leanwatt.model import Model
from leanwatt.prompt import Encoder
from leanwatt.prune._masking import whole_weights
from leanwatt.prune._tokens import Vocabulary as Tokens
from leanwatt.question import Score

if TYPE_CHECKING:
    import torch


@final
@dataclass(frozen=True)
class Vocabulary(Step):
    """Keep the tokens of the training texts, what they are built from, added tokens, and bytes or characters."""

    extra: Annotated[int, Ge(0)] = 0
    """How many more stay: those with the lowest numbers, which are the commonest of most tokenizers."""
    multiple: Annotated[int, Ge(1)] = 16
    """The new size is rounded up to a multiple of this, which kernels like, with such tokens."""

    version: ClassVar[int] = 1
    reads_data: ClassVar[bool] = True

    def foresee(self, outlook: Outlook) -> None:
        """Other tokens than the base's; how many the data say."""
        outlook.left["vocabulary"] = "prune vocabulary"

    def apply(self, model: Model, context: Context) -> Model:
        """Cut tokenizer, embeddings and output layer. Raises RefusedError where nothing can go."""
        whole_weights(model, "vocabulary")
        tokens, rows = Tokens(model.tokenizer), int(model.module.get_input_embeddings().num_embeddings)
        texts = _texts(model, context)
        used = {number for text in texts for number in text} | set(_special(model, rows))
        if max(used) >= rows:
            raise RefusedError(f"prune vocabulary: token {max(used)} is in use and has no embedding of the {rows}.")
        # Some tokenizers add tokens of their class that this model was never given embeddings for.
        kept = self._kept(*({n for n in each if n < rows} for each in (tokens.needed(used), tokens.ids.values())))
        if len(kept) >= rows:
            raise RefusedError(f"prune vocabulary: all {rows} tokens are needed, in multiples of {self.multiple}.")
        new = {old: number for number, old in enumerate(kept)}
        model.tokenizer = tokens.keep(model.tokenizer, kept)
        _cut(model.module, kept)
        _renumber(model.module, new)
        if _texts(model, context) != [tuple(new[old] for old in text) for text in texts]:
            raise RefusedError("prune vocabulary: this tokenizer would encode training texts in another way.")
        model.history.append(f"prune vocabulary {rows} -> {len(kept)}")
        return model

    def _kept(self, needed: set[int], known: set[int]) -> list[int]:
        """Ids in their old order: those needed, and the lowest others until the number is right."""
        others = sorted(known - needed)
        missing = -(len(needed) + self.extra) % self.multiple
        return sorted([*needed, *others[: self.extra + missing]])


def _texts(model: Model, context: Context) -> list[tuple[int, ...]]:
    """Every training prompt with its answer, and every option that may be the answer, in tokens."""
    encoder = Encoder(model.tokenizer, model.context)
    asked = [example.question for example in context.train]
    options = dict.fromkeys(option for each in asked if isinstance(each, Score) for option in each.options)
    return [*(lesson.ids for lesson in lessons(context.train, encoder)), *map(encoder.answer, options)]


def _special(model: Model, rows: int) -> list[int]:
    """Ids that configuration and generation settings name: begin, end, padding. Others than 0 to `rows` name none."""
    places = (model.module.config, model.module.generation_config)
    named = [number for place in places for _, numbers in _named(place) for number in numbers]
    return [number for number in named if 0 <= number < rows]


def _named(config: Any) -> list[tuple[str, Sequence[int]]]:
    """Settings of a configuration that name tokens by number, as lists."""
    found: list[tuple[str, Sequence[int]]] = []
    for name, value in config.to_dict().items():
        if name.endswith("_token_id") and value is not None:
            found.append((name, value if isinstance(value, list) else [value]))
    return found


def _renumber(module: Any, new: Mapping[int, int]) -> None:
    """Write the new size and numbers where plain transformers reads them."""
    for config in (module.config, module.generation_config):
        for name, numbers in _named(config):
            changed = [new.get(number, number) for number in numbers]
            setattr(config, name, changed if isinstance(getattr(config, name), list) else changed[0])
    module.config.vocab_size = len(new)
    for part in module.modules():
        if hasattr(part, "vocab_size"):
            part.vocab_size = len(new)


def _cut(module: Any, kept: Sequence[int]) -> None:
    """Rows of the embeddings and of the output layer, which may be one matrix."""
    import torch

    stay = torch.tensor(kept)
    inside, outside = module.get_input_embeddings(), module.get_output_embeddings()
    is_tied = outside.weight is inside.weight
    inside.weight = _rows(inside.weight, stay)
    inside.num_embeddings = len(kept)
    if inside.padding_idx is not None and inside.padding_idx >= 0:
        inside.padding_idx = kept.index(inside.padding_idx)
    outside.weight = inside.weight if is_tied else _rows(outside.weight, stay)
    outside.out_features = len(kept)
    if outside.bias is not None:
        outside.bias = _rows(outside.bias, stay)


def _rows(parameter: torch.Tensor, stay: torch.Tensor) -> torch.nn.Parameter:
    import torch

    return torch.nn.Parameter(parameter.data.index_select(0, stay))
