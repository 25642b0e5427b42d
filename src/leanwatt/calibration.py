"""What goes through a model on examples of its own task: the statistics that pruning and quantization read.

Both ways go block by block, so that memory holds the activations of one block, and each block sees what the blocks
before it, already changed, send on. `stages` halts inside the blocks too, before each group of layers that read the
same tensor: the calibration is then one pass through the model, and a layer sees all changes before it. `walk` shows
a block whole, as often as one likes.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge

from leanwatt.contracts import Context, Step
from leanwatt.errors import RefusedError
from leanwatt.lesson import Lesson, lessons, tensors
from leanwatt.model import Model, blocks, linears
from leanwatt.prompt import Encoder

if TYPE_CHECKING:
    import torch

BATCH = 16
CALIBRATE = "calibrate"
"""The part of a step that runs the model on the sample: what calibration costs by itself."""
LONGEST = 256
"""Tokens of one piece of plain text; tickets are as long as they are."""
M_MMAP_THRESHOLD = -3
"""As in glibc's malloc.h."""
LARGE = 8 * 2**20
"""Bytes; smaller pieces come and go too often for that."""


@dataclass(frozen=True, kw_only=True)
class Calibrated(Step):
    """A step that looks at what goes through the model on examples."""

    examples: Annotated[int, Ge(1)] = 128
    """Training examples, or pieces of `text`, that the activations are taken from."""
    text: str | None = None
    """A file of plain text to calibrate on instead of the training examples."""

    reads_data: ClassVar[bool] = True

    def files(self) -> Sequence[Path]:
        """The text, where there is one."""
        return [] if self.text is None else [Path(self.text)]

    def sample(self, model: Model, context: Context) -> list[Lesson]:
        """What to calibrate on, in tokens; raises as `sample` does."""
        return sample(model, context, self.examples, self.text)


def sample(model: Model, context: Context, count: int, text: str | None = None) -> list[Lesson]:
    """`count` training examples in tokens, drawn by the seed; all of them where there are fewer.

    With `text`, a file of plain text, pieces of it instead. Raises RefusedError where there is too little.
    """
    if text is not None:
        return _pieces(model, Path(text), context.seed, count)
    if not context.train:
        raise RefusedError("Calibration reads training examples, and there are none.")
    order = random.Random(context.seed)
    chosen = order.sample(list(context.train), min(count, len(context.train)))
    return lessons(chosen, Encoder(model.tokenizer, model.context))


def _pieces(model: Model, file: Path, seed: int, count: int) -> list[Lesson]:
    try:
        ids = model.tokenizer(file.read_text(encoding="utf-8"), add_special_tokens=False, verbose=False)["input_ids"]
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"calibration text: {file} cannot be read as UTF-8 text ({error}).") from error
    length = min(LONGEST, model.context)
    if len(ids) < length:
        raise RefusedError(f"calibration text: {file} has {len(ids)} tokens; at least {length} are needed.")
    order = random.Random(seed)
    starts = [order.randrange(len(ids) - length + 1) for _ in range(count)]
    return [Lesson(tuple(ids[start : start + length]), 0) for start in starts]


@dataclass(frozen=True)
class Batch:
    """Some lessons on their way through the blocks."""

    hidden: torch.Tensor
    """What enters the block, (lessons, longest, features); the walk writes what leaves it into the same memory."""
    real: torch.Tensor
    """Which tokens are not padding, (lessons, longest), bool."""
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]
    """Per block, what it is called with besides: masks, positions."""


@dataclass(frozen=True)
class Visit:
    """One block in its turn."""

    block: Any
    layers: dict[str, Any]
    """Its linear layers, named as in `linears`."""
    index: int
    batches: Sequence[Batch]
    context: Context

    def outputs(self, batch: Batch) -> torch.Tensor:
        """What leaves the block as it is now, (lessons, longest, features)."""
        import torch

        with torch.inference_mode():
            return self.run(batch)

    def run(self, batch: Batch) -> torch.Tensor:
        """The same in whatever mode torch is in."""
        args, kwargs = batch.calls[self.index]
        out = self.block(batch.hidden, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out  # type: ignore[no-any-return]

    def inputs(self) -> Iterator[dict[str, torch.Tensor]]:
        """Batch by batch, what enters each linear layer: real tokens only, (tokens, features).

        Layers that read the same tensor (query, key and value) get the same object, so that work can be shared.
        """
        with inputs_of(self.layers) as latest:
            for batch in self.batches:
                with self.context.stage(CALIBRATE):
                    self.outputs(batch)
                yield _real_tokens(latest, batch.real)

    def shared_inputs(self) -> Iterator[dict[tuple[str, ...], torch.Tensor]]:
        """The same, under the names of all the layers that read a tensor: for work that is done once for them."""
        for inputs in self.inputs():
            readers: dict[int, list[str]] = {}
            for name, tensor in inputs.items():
                readers.setdefault(id(tensor), []).append(name)
            yield {tuple(names): inputs[names[0]] for names in readers.values()}


def _real_tokens(latest: dict[str, torch.Tensor], real: torch.Tensor) -> dict[str, torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    for inputs in latest.values():
        if id(inputs) not in found:
            found[id(inputs)] = _tokens(inputs, real)
    return {name: found[id(inputs)] for name, inputs in latest.items()}


def _tokens(inputs: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """(tokens, features) without padding; OPT's MLP sees the tokens of all lessons in one row after the other."""
    flat = inputs.flatten(0, -2)
    return flat if bool(real.all()) else flat[real.flatten()]


def walk(model: Model, on: Sequence[Lesson], context: Context) -> Iterator[Visit]:
    """Visit the blocks in order. What the visitor changes in a block is in force for the blocks after it."""
    stack = blocks(model.module)
    for visit in _visits(model, on, context):
        yield visit
        if visit.index < len(stack) - 1:
            with context.stage(CALIBRATE):
                for batch in visit.batches:
                    batch.hidden.copy_(visit.outputs(batch))


def _visits(model: Model, on: Sequence[Lesson], context: Context) -> Iterator[Visit]:
    _give_memory_back()
    stack, layers = blocks(model.module), linears(model.module)
    with context.stage(CALIBRATE):
        batches = [_entering(model, part, stack) for part in _parts(on)]
    for index, block in enumerate(stack):
        own = {id(each) for each in block.modules()}
        mine = {name: each for name, each in layers.items() if id(each) in own}
        yield Visit(block, mine, index, batches, context)
        context.progress("calibration", (index + 1) / len(stack))


@dataclass(frozen=True)
class Stage:
    """Linear layers that read the same tensor, just before they are run."""

    layers: dict[str, Any]
    """Named as in `linears`."""
    batches: Sequence[Batch]
    halted: list[torch.Tensor]
    """Per batch, what enters these layers, padding included."""

    def inputs(self) -> Iterator[torch.Tensor]:
        """Batch by batch, what enters these layers: real tokens only, (tokens, features)."""
        for inputs, batch in zip(self.halted, self.batches, strict=True):
            yield _tokens(inputs, batch.real)


def stages(model: Model, on: Sequence[Lesson], context: Context) -> Iterator[Stage]:
    """Visit the linear layers in the order in which they run, those that read the same tensor together.

    What the visitor changes in them is in force for all that comes after, in the same block too: the "true sequential"
    order of GPTQ's code. Each batch goes through the model once.
    """
    groups = _same_input(model, on[0])
    for visit in _visits(model, on, context):
        yield from _halting(visit, [group for group in groups if visit.layers.keys() & group.keys()])


def _give_memory_back() -> None:
    """Ask the C library, where it is glibc, to return large pieces of memory as soon as they are free.

    Activations come and go in a few sizes; kept for later they would be a fifth of the most memory that is held.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)


def _same_input(model: Model, lesson: Lesson) -> list[dict[str, Any]]:
    """The linear layers, those that read the same tensor together, in the order in which they run."""
    import torch

    layers, groups = linears(model.module), dict[int, dict[str, Any]]()
    with inputs_of(layers) as latest:
        with torch.inference_mode():
            model.module.base_model(input_ids=torch.tensor([lesson.ids[:2]]), use_cache=False)
        for name, inputs in latest.items():
            groups.setdefault(id(inputs), {})[name] = layers[name]
    return list(groups.values())


def _halting(visit: Visit, groups: Sequence[dict[str, Any]]) -> Iterator[Stage]:
    """One block, batch beside batch: each is a greenlet, whose stack stays where it halted until its next turn."""
    import torch
    from greenlet import getcurrent, greenlet

    def halt(_module: Any, args: tuple[Any, ...]) -> None:
        if getcurrent() in passes:  # A visitor may run the model on its own account.
            getcurrent().parent.switch(args[0])

    passes = [greenlet(visit.run) for _ in visit.batches]
    hooks = [next(iter(group.values())).register_forward_pre_hook(halt) for group in groups]
    halted: list[Any] = list(visit.batches)
    try:
        for group in [*groups, None]:
            # The mode here and not in `run`: it belongs to the thread, which all share.
            with visit.context.stage(CALIBRATE), torch.inference_mode():
                for i, each in enumerate(passes):
                    halted[i] = each.switch(halted[i]) if not each else each.switch()
            if group:
                yield Stage(group, visit.batches, halted)
    finally:
        for hook in hooks:
            hook.remove()
    for batch, outputs in zip(visit.batches, halted, strict=True):
        batch.hidden.copy_(outputs)


def _entering(model: Model, part: Sequence[Lesson], stack: Any) -> Batch:
    """What enters the first block, and what else each block is called with; no block is run."""
    import torch

    ids, seen, _ = tensors(part, model.tokenizer.pad_token_id)
    entered: list[torch.Tensor] = []
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def pass_on(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        entered.append(hidden)
        calls.append((args, kwargs))
        return hidden

    for block in stack:
        block.forward = pass_on
    try:
        with torch.inference_mode():
            model.module.base_model(input_ids=ids, attention_mask=seen, use_cache=False)
    finally:
        for block in stack:
            del block.forward  # The class has its own.
    return Batch(entered[0].clone(), seen.bool(), calls)


def _parts(on: Sequence[Lesson]) -> Iterator[Sequence[Lesson]]:
    """Lessons of like length together."""
    ordered = sorted(on, key=lambda lesson: len(lesson.ids))
    for start in range(0, len(ordered), BATCH):
        yield ordered[start : start + BATCH]


@contextmanager
def inputs_of(layers: dict[str, Any]) -> Iterator[dict[str, torch.Tensor]]:
    """While open, the latest input of each layer, (lessons, longest, features), under the layer's name."""
    latest: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, args: latest.update({name: args[0]})

    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield latest
    finally:
        for hook in hooks:
            hook.remove()


def input_norms(
    model: Model, layers: Collection[str], on: Sequence[Lesson], context: Context
) -> dict[str, torch.Tensor]:
    """Per layer, the root of the summed squares of each input feature over all tokens: float32, (features,)."""
    import torch

    norms: dict[str, torch.Tensor] = {}
    for stage in stages(model, on, context):
        if wanted := [name for name in stage.layers if name in layers]:
            squares: Any = sum(inputs.float().square().sum(0) for inputs in stage.inputs())
            norms |= dict.fromkeys(wanted, torch.sqrt(squares))
    return norms


def block_influence(model: Model, on: Sequence[Lesson], context: Context) -> list[float]:
    """How much each block turns its input: 1 - mean cosine of input and output (Men et al., 2024, arXiv:2403.03853)."""
    import torch

    found = []
    for visit in _visits(model, on, context):
        turned = tokens = 0.0
        for batch in visit.batches:
            with context.stage(CALIBRATE):
                out = visit.outputs(batch)
            cosines = torch.cosine_similarity(batch.hidden[batch.real].float(), out[batch.real].float(), dim=-1)
            turned, tokens = turned + float(cosines.sum()), tokens + len(cosines)
            batch.hidden.copy_(out)
        found.append(1 - turned / tokens)
    return found
