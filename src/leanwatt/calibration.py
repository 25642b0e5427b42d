"""What goes through a model on examples of its own task: the statistics that pruning reads."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from leanwatt.contracts import Context
from leanwatt.errors import RefusedError
from leanwatt.model import Model, blocks
from leanwatt.prompt import Encoder
from leanwatt.training import Lesson, lessons, tensors

if TYPE_CHECKING:
    import torch

BATCH = 16


def sample(model: Model, context: Context, count: int) -> list[Lesson]:
    """`count` training examples in tokens, drawn by the seed; all of them where there are fewer."""
    if not context.train:
        raise RefusedError("Calibration reads training examples, and there are none.")
    order = random.Random(context.seed)
    chosen = order.sample(list(context.train), min(count, len(context.train)))
    return lessons(chosen, Encoder(model.tokenizer, model.context))


def run(model: Model, on: Sequence[Lesson], context: Context) -> Iterator[torch.Tensor]:
    """Forward passes over the sample; yields which tokens of each batch are real, (lessons, longest), bool."""
    import torch

    ordered = sorted(on, key=lambda lesson: len(lesson.ids))
    for start in range(0, len(ordered), BATCH):
        ids, seen, _ = tensors(ordered[start : start + BATCH], model.tokenizer.pad_token_id)
        with torch.inference_mode():
            model.module(input_ids=ids, attention_mask=seen, use_cache=False)
        yield seen.bool()
        context.progress("calibration", min(1.0, (start + BATCH) / len(ordered)))


@contextmanager
def inputs_of(layers: dict[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
    """While open, the latest input of each layer, (lessons, longest, features), under the layer's name."""
    latest: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, args: latest.update({name: args[0].detach()})

    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield latest
    finally:
        for hook in hooks:
            hook.remove()


def input_norms(model: Model, layers: dict[str, Any], context: Context, count: int) -> dict[str, torch.Tensor]:
    """Per layer, the root of the summed squares of each input feature over `count` examples: float32, (features,)."""
    import torch

    squares: dict[str, torch.Tensor] = {}
    with inputs_of(layers) as latest:
        for real in run(model, sample(model, context, count), context):
            for name, inputs in latest.items():
                # OPT's MLP sees the tokens of all lessons in one row after the other.
                summed = inputs.flatten(0, -2)[real.flatten()].float().square().sum(0)
                squares[name] = squares[name] + summed if name in squares else summed
    return {name: torch.sqrt(total) for name, total in squares.items()}


def block_influence(model: Model, context: Context, count: int) -> list[float]:
    """How much each block turns its input: 1 - mean cosine of input and output (Men et al., 2024, arXiv:2403.03853)."""
    import torch

    stack = blocks(model.module)
    outputs: dict[int, torch.Tensor] = {}
    hooks = [
        block.register_forward_hook(
            lambda _m, _a, out, i=i: outputs.update({i: out[0] if isinstance(out, tuple) else out})
        )
        for i, block in enumerate(stack)
    ]
    cosines, tokens = torch.zeros(len(stack)), 0
    try:
        with inputs_of({str(i): block for i, block in enumerate(stack)}) as inputs:
            for real in run(model, sample(model, context, count), context):
                tokens += int(real.sum())
                for i in range(len(stack)):
                    turned = torch.cosine_similarity(inputs[str(i)][real].float(), outputs[i][real].float(), dim=-1)
                    cosines[i] += turned.sum()
    finally:
        for hook in hooks:
            hook.remove()
    return [float(value) for value in 1 - cosines / tokens]
