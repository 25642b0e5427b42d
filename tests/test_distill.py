"""Distillation: the loss by hand, what it moves and what it leaves, whose parent it is, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leanwatt import catalog
from leanwatt.errors import RefusedError
from leanwatt.lesson import lessons
from leanwatt.model import linears, load, weight_of
from leanwatt.prompt import Encoder
from leanwatt.recipe import Choice
from leanwatt.schedule import Schedule
from leanwatt.training import Teacher, Trainer

HALF = Choice("prune", "magnitude", {"sparsity": 0.5})


def distill(**settings: Any) -> Any:
    return catalog.build(Choice("finetune", "distill", settings))


@pytest.fixture
def pruned(saved: Callable[[str], Path], context: Any) -> Any:
    return catalog.build(HALF).apply(load(saved("llama")), context)


def of_parent(context: Any, saved: Callable[[str], Path], **changes: Any) -> Any:
    return replace(context, parent=saved("llama"), **changes)


@pytest.mark.parametrize("settings", [(0.5, 1.0, 0.0), (1.0, 2.0, 0.0), (0.25, 3.0, 0.5)])
def test_the_loss_is_that_of_a_loop_over_tokens(
    settings: tuple[float, float, float], pruned: Any, saved: Callable[[str], Path], context: Any
) -> None:
    import torch

    share, temperature, prompt = settings
    parent = load(saved("llama")).module
    parent.model.norm.weight.data.mul_(20)  # Far enough apart to be told from rounding.
    found = lessons(context.train, Encoder(pruned.tokenizer, pruned.context))[:5]
    summed = 0.0
    with torch.inference_mode():
        for lesson in found:
            ids = torch.tensor([lesson.ids])
            mine, theirs = pruned.module(ids).logits[0], parent(ids).logits[0]
            for place in range(1, len(lesson.ids)):
                weight = 1.0 if place >= lesson.answer_from else prompt
                hard = -float(mine[place - 1].log_softmax(-1)[lesson.ids[place]])
                one, other = (theirs[place - 1] / temperature).softmax(-1), (mine[place - 1] / temperature).softmax(-1)
                apart = float((one * (one / other).log()).sum()) * temperature**2
                summed += weight * ((1 - share) * hard + share * apart)
    schedule = Schedule(1e-3, 1, 8, prompt_weight=prompt)
    trainer = Trainer(pruned, schedule, 0, lambda _t, _s: None, teacher=Teacher(parent, temperature, share))
    assert float(trainer._summed_loss(found).detach()) == pytest.approx(summed, rel=1e-4)
    plain = Trainer(pruned, replace(schedule, prompt_weight=0.0), 0, lambda _t, _s: None)
    assert trainer._loss(found) == pytest.approx(plain._loss(found)), "validation is about right answers only"


def test_it_comes_nearer_to_its_parent(pruned: Any, saved: Callable[[str], Path], context: Any) -> None:
    import torch

    parent = load(saved("llama")).module
    found = lessons(context.train, Encoder(pruned.tokenizer, pruned.context))

    def apart() -> float:
        with torch.inference_mode():
            pairs = [(parent(torch.tensor([e.ids])).logits, pruned.module(torch.tensor([e.ids])).logits) for e in found]
        logs = [(one.log_softmax(-1), other.log_softmax(-1)) for one, other in pairs]
        return sum(float((one.exp() * (one - other)).sum(-1).mean()) for one, other in logs)

    before = apart()
    settings = {"share": 1.0, "epochs": 20, "batch": 8, "prompt": 1.0}
    distill(**settings).apply(pruned, of_parent(context, saved, validation=[]))
    assert apart() < 0.7 * before
    assert pruned.history[-1].startswith("finetune distill: 40 steps")


def test_in_passes_and_computed_again_it_is_the_same_step(saved: Callable[[str], Path], context: Any) -> None:
    ends = []
    for settings in ({}, {"at_once": 3, "checkpointing": True}):
        model = catalog.build(HALF).apply(load(saved("llama")), context)
        distill(epochs=2, batch=8, **settings).apply(model, of_parent(context, saved))
        ends.append({name: p.detach().clone() for name, p in model.module.named_parameters()})
    for name, value in ends[0].items():
        assert value.allclose(ends[1][name], atol=2e-4), name


def test_patience_is_how_many_looks_without_better_are_waited_for(
    pruned: Any, saved: Callable[[str], Path], context: Any
) -> None:
    worse = {"learning_rate": 1.0, "epochs": 4, "batch": 4, "checks": 8, "patience": 1}
    distill(**worse).apply(pruned, of_parent(context, saved))
    assert "stopped early" in pruned.history[-1]


def read(folder: Path) -> dict[Path, bytes]:
    """The files of a model; an engine that was here before may have left a folder of its own."""
    return {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_zeros_stay_and_all_else_moves_and_the_parent_does_not(
    pruned: Any, saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    before = {name: weight_of(layer).clone() for name, layer in linears(pruned.module).items()}
    files = read(saved("llama"))
    distill(epochs=4, batch=4).apply(pruned, of_parent(context, saved, validation=[]))
    for name, layer in linears(pruned.module).items():
        weight, mask = weight_of(layer), pruned.masks[name]
        assert not weight[~mask].any()
        assert (weight != before[name])[mask].float().mean() > 0.9
    assert read(saved("llama")) == files
    pruned.save(tmp_path / "variant")


def test_without_a_parent_with_the_same_tokens_it_is_refused(
    pruned: Any, saved: Callable[[str], Path], context: Any
) -> None:
    with pytest.raises(RefusedError, match="put a prune step before"):
        distill().apply(pruned, context)
    other = catalog.build(Choice("prune", "vocabulary", {"multiple": 1})).apply(pruned, context)
    with pytest.raises(RefusedError, match="put vocabulary last"):
        distill().apply(other, of_parent(context, saved))


def test_adapters_and_codes_are_refused(saved: Callable[[str], Path], context: Any) -> None:
    given = of_parent(context, saved, max_steps=1)
    tuned = catalog.build(Choice("finetune", "lora", {"rank": 2})).apply(load(saved("llama")), given)
    with pytest.raises(RefusedError, match="merge"):
        distill().apply(tuned, given)
    coded = catalog.build(Choice("quantize", "round_to_nearest", {"bits": 8})).apply(load(saved("llama")), given)
    with pytest.raises(RefusedError, match="put it before"):
        distill().apply(coded, given)
