"""The training loop: what has a loss, what is seen how often, what is kept at the end."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanwatt.errors import RefusedError
from leanwatt.lesson import Lesson, lessons, tensors
from leanwatt.model import Model, accelerator, linears, load, weight_of
from leanwatt.prompt import Encoder
from leanwatt.question import Example, Generate, Likelihood, Prompt, Score
from leanwatt.schedule import Schedule
from leanwatt.training import Trainer, _batches, _optimizer

ASK = Prompt("Name the root cause.", "alarm at site A", "Root cause:")
SCORED = Example("1", "g", "train", Score(ASK, ("mains failure", "fibre cut")), "fibre cut")
WRITTEN = Example("2", "g", "train", Generate(ASK, limit=6), "replaced power at site A B C D and then the router")
PACE = Schedule(learning_rate=5e-3, epochs=1, batch=4)


@pytest.fixture
def model(saved: Callable[[str], Path]) -> Model:
    return load(saved("llama"))


def quiet(_text: str, _share: float) -> None:
    return None


def some_lessons(model: Model, context: Any) -> list[Lesson]:
    return lessons(context.train, Encoder(model.tokenizer, model.context))


def weights(model: Model) -> dict[str, Any]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name].equal(other[name]) for name in one)


def test_a_lesson_is_the_prompt_and_the_right_answer(model: Model) -> None:
    encoder = Encoder(model.tokenizer, model.context)
    [lesson] = lessons([SCORED], encoder)
    prompt, answer = lesson.ids[: lesson.answer_from], lesson.ids[lesson.answer_from :]
    assert prompt == encoder.prompt(ASK, len(answer)).ids
    assert model.tokenizer.decode(list(answer)) == " fibre cut</s>"


def test_a_written_answer_is_no_longer_than_it_may_be_and_still_ends(model: Model) -> None:
    encoder = Encoder(model.tokenizer, model.context)
    [lesson] = lessons([WRITTEN], encoder)
    answer = lesson.ids[lesson.answer_from :]
    assert len(answer) == 6
    assert answer[:5] == encoder.answer(WRITTEN.target)[:5]
    assert answer[-1] == encoder.end


def test_a_text_without_a_question_is_learned_whole(model: Model) -> None:
    encoder = Encoder(model.tokenizer, model.context)
    [lesson] = lessons([Example("3", "g", "train", Likelihood("some text"), "")], encoder)
    assert (lesson.ids, lesson.answer_from) == (encoder.document("some text"), 1)
    long = Example("4", "g", "train", Likelihood("power lost at site A " * 100), "")
    parts = lessons([long], encoder)
    assert len(parts) > 1
    learned = [token for part in parts for token in part.ids[part.answer_from :]]
    assert tuple(learned) == encoder.document(long.question.text)[1:]  # type: ignore[union-attr]


def test_padding_is_not_seen_and_no_answer() -> None:
    ids, seen, answers = tensors([Lesson((5, 6, 7, 8), 2), Lesson((9, 3), 1)], pad=2)
    assert ids.tolist() == [[5, 6, 7, 8], [9, 3, 2, 2]]
    assert seen.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert answers.int().tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]


@pytest.mark.parametrize("prompt_weight", [0.0, 0.25, 1.0])
def test_the_loss_is_the_weighted_mean_over_tokens_whatever_the_padding(
    prompt_weight: float, model: Model, context: Any
) -> None:
    import torch

    found = some_lessons(model, context)
    summed = 0.0
    with torch.inference_mode():
        for lesson in found:
            logs = model.module(torch.tensor([lesson.ids])).logits[0].log_softmax(-1)
            for place in range(1, len(lesson.ids)):
                weight = 1.0 if place >= lesson.answer_from else prompt_weight
                summed -= weight * float(logs[place - 1, lesson.ids[place]])
        got = float(Trainer(model, replace(PACE, prompt_weight=prompt_weight), 0, quiet)._summed_loss(found))
    assert got == pytest.approx(summed, rel=1e-4)


def test_the_validation_loss_is_that_of_one_large_batch(model: Model, context: Any) -> None:
    found = some_lessons(model, context) * 5
    trainer = Trainer(model, PACE, 0, quiet)
    assert len(found) > 64
    answers = sum(len(lesson.ids) - lesson.answer_from for lesson in found)
    assert trainer._loss(found) == pytest.approx(float(trainer._summed_loss(found).detach()) / answers, rel=1e-4)


def test_matrices_decay_and_vectors_do_not(model: Model) -> None:
    matrices, vectors = _optimizer(list(model.module.parameters()), Schedule(1e-3, 1, 1, weight_decay=0.3)).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}


@given(count=st.integers(1, 300), size=st.integers(1, 9), seed=st.integers(0, 5))
def test_every_lesson_is_seen_once_an_epoch(count: int, size: int, seed: int) -> None:
    every = [Lesson((1,) * (1 + i % 7), 0) for i in range(count)]
    places = {id(lesson): i for i, lesson in enumerate(every)}
    an_epoch = math.ceil(count / size)
    made = list(_batches(every, size, 2 * an_epoch, seed))
    assert len(made) == 2 * an_epoch
    for epoch in (made[:an_epoch], made[an_epoch:]):
        assert sorted(places[id(lesson)] for batch in epoch for lesson in batch) == list(range(count))
        assert max(map(len, epoch)) <= size


def test_batches_hold_lessons_of_like_length() -> None:
    every = [Lesson((1,) * (1 + i % 16), 0) for i in range(256)]
    spread = [len({len(lesson.ids) for lesson in batch}) for batch in _batches(every, 16, 16, seed=0)]
    assert max(spread) <= 2


def test_batches_follow_the_seed() -> None:
    every = [Lesson((i,), 0) for i in range(40)]
    assert list(_batches(every, 4, 10, 0)) == list(_batches(every, 4, 10, 0))
    assert list(_batches(every, 4, 10, 0)) != list(_batches(every, 4, 10, 1))


@pytest.mark.parametrize(
    ("count", "epochs", "batch", "most", "steps"),
    [(10, 1.0, 4, None, 3), (10, 2.0, 4, None, 5), (10, 0.1, 4, None, 1), (10, 3.0, 4, 2, 2), (10, 1.0, 4, 99, 3)],
)
def test_steps(count: int, epochs: float, batch: int, most: int | None, steps: int) -> None:
    assert Schedule(1e-3, epochs, batch, max_steps=most).steps(count) == steps


def test_no_lessons_are_refused(model: Model) -> None:
    with pytest.raises(RefusedError, match="no training examples"):
        Trainer(model, PACE, 0, quiet).run([], [])


def test_the_rate_rises_stays_and_falls_straight() -> None:
    rates = [Schedule(1.0, 1, 1).rate(step, 100) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:60] == [1.0] * 55
    assert rates[61:] == pytest.approx([(100 - step) / 40 for step in range(61, 100)])
    assert Schedule(1.0, 1, 1).rate(0, 10_000) == pytest.approx(1 / 50), "long warm-ups are cut"
    assert 0 < Schedule(1.0, 1, 1).rate(0, 1) <= 1


def test_training_learns_and_says_how_much(model: Model, context: Any) -> None:
    found, told = some_lessons(model, context), list[float]()
    trainer = Trainer(model, Schedule(1e-2, 6, 4), 0, lambda _text, share: told.append(share))
    before = trainer._loss(found)
    outcome = trainer.run(found, found)
    assert outcome.first_loss == pytest.approx(before)
    assert outcome.best_loss is not None and outcome.best_loss < 0.8 * before
    assert trainer._loss(found) == pytest.approx(outcome.best_loss, rel=1e-5)
    assert told == sorted(told) and told[-1] == outcome.steps / trainer.schedule.steps(len(found))
    assert not model.module.training


def test_training_follows_the_seed(saved: Callable[[str], Path], context: Any) -> None:
    ends = []
    for seed in (0, 0, 1):
        model = load(saved("llama"))
        Trainer(model, PACE, seed, quiet).run(some_lessons(model, context), [])
        ends.append(weights(model))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def with_losses(trainer: Trainer, losses: Sequence[float], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Validation losses as given; returns the states that were looked at."""
    looked: list[dict[str, Any]] = []

    def loss(self: Trainer, _check_on: object) -> float:
        looked.append(weights(self.model))
        return losses[len(looked) - 1]

    monkeypatch.setattr(Trainer, "_loss", loss)
    return looked


@pytest.mark.parametrize(
    ("losses", "best", "early"),
    [
        ([9.0, 5.0, 4.0, 3.0, 2.0], 4, False),
        ([9.0, 5.0, 1.0, 3.0, 2.0], 2, True),
        ([9.0, 5.0, 6.0, 7.0, 2.0], 1, True),
        ([1.0, 5.0, 6.0, 7.0, 2.0], 0, True),
    ],
)
def test_it_ends_on_the_best_state_and_stops_early(
    *, losses: list[float], best: int, early: bool, model: Model, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(model, Schedule(5e-3, 2, 4, patience=2), 0, quiet)
    looked = with_losses(trainer, losses, monkeypatch)
    found = some_lessons(model, context)
    outcome = trainer.run(found, found)
    # Two looks without an improvement end it, but the last look ends it anyway.
    assert outcome.stopped_early == (early and len(looked) < 5)
    assert outcome.best_loss == min(losses[: len(looked)]) == losses[best]
    assert same(weights(model), looked[best])


def test_without_validation_the_last_state_stays(model: Model, context: Any) -> None:
    before = weights(model)
    outcome = Trainer(model, PACE, 0, quiet).run(some_lessons(model, context), [])
    assert outcome.first_loss is None and outcome.best_loss is None
    assert not outcome.stopped_early
    assert not same(before, weights(model))


def test_a_gpu_is_asked_for_and_given_back(model: Model, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    asked: list[str] = []
    monkeypatch.setattr(type(model.module), "to", lambda self, device: asked.append(device) or self)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    trainer = Trainer(model, PACE, 0, quiet)
    assert trainer.device == accelerator() == "cuda"
    with pytest.raises((RuntimeError, AssertionError), match=r"(?i)cuda"):  # There is none here.
        trainer.run(some_lessons(model, context), [])
    assert asked == ["cuda", "cpu"]


def test_it_learns_on_a_gpu(model: Model, context: Any) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here: training on one has not yet been run")
    before = weights(model)
    Trainer(model, replace(PACE, precision="bf16"), 0, quiet).run(some_lessons(model, context), [])
    assert not same(before, weights(model))
    assert {p.device.type for p in model.module.parameters()} == {"cpu"}


def test_masks_are_kept_at_every_step(model: Model, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from leanwatt import catalog
    from leanwatt.recipe import Choice

    catalog.build(Choice("prune", "magnitude", {"sparsity": 0.5})).apply(model, context)
    trainer, zeros = Trainer(model, PACE, 0, quiet), list[int]()
    real = Trainer._learn

    def learn(self: Trainer, *arguments: Any) -> Any:
        loss = real(self, *arguments)
        layers = linears(model.module)
        zeros.append(sum(int((weight_of(layers[name])[~mask] != 0).sum()) for name, mask in model.masks.items()))
        return loss

    monkeypatch.setattr(Trainer, "_learn", learn)
    trainer.run(some_lessons(model, context), [])
    assert len(zeros) == 4
    assert not any(zeros)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_cannot_move_does_not_count_when_gradients_are_clipped(
    family: str, saved: Callable[[str], Path], context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from leanwatt import catalog
    from leanwatt.recipe import Choice

    model, seen = load(saved(family)), list[int]()
    catalog.build(Choice("prune", "magnitude", {"pattern": "2:4"})).apply(model, context)
    real = torch.nn.utils.clip_grad_norm_

    def clip(parameters: Any, most: float) -> Any:
        layers = linears(model.module)
        for name, mask in model.masks.items():
            gradient = layers[name].weight.grad
            as_mask = gradient.t() if family == "gpt2" else gradient
            assert not as_mask[~mask].any(), name
            assert as_mask[mask].any(), name
            seen.append(1)
        return real(parameters, most)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    Trainer(model, PACE, 0, quiet).run(some_lessons(model, context), [])
    assert len(seen) == 4 * len(model.masks) > 0


def test_only_what_requires_a_gradient_learns(model: Model, context: Any) -> None:
    model.module.requires_grad_(False)
    name, learned = next(iter(linears(model.module).items()))
    learned.weight.requires_grad_(True)
    before = weights(model)
    Trainer(model, PACE, 0, quiet).run(some_lessons(model, context), [])
    changed = [key for key, value in weights(model).items() if not value.equal(before[key])]
    assert changed == [f"{name}.weight"]


def test_bf16_keeps_the_weights_in_fp32(model: Model, context: Any) -> None:
    schedule = Schedule(5e-3, 2, 4, precision="bf16")
    Trainer(model, schedule, 0, quiet).run(some_lessons(model, context), some_lessons(model, context))
    assert Counter(str(p.dtype) for p in model.module.parameters()).keys() == {"torch.float32"}
