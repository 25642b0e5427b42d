"""A training that was killed: the same weights at the end, no more than the last seconds lost, and what it cost."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leanwatt.cache import CURVE
from leanwatt.checkpoint import FILE, Checkpoint
from leanwatt.curve import Recorder, Spent, read
from leanwatt.errors import StoreError
from leanwatt.ledger import Ledger
from leanwatt.lesson import lessons
from leanwatt.measurement import Counter, Energy, Measurement, Provenance, Reading
from leanwatt.model import Model, load
from leanwatt.prompt import Encoder
from leanwatt.recipe import Choice, Recipe, Variant
from leanwatt.schedule import Schedule
from leanwatt.training import Outcome, Trainer
from leanwatt.variants import Maker, local_base

PACE = Schedule(learning_rate=5e-3, epochs=3, batch=4, checks=3, patience=9)


class Killed(BaseException):
    """As if the process had ended here."""


def quiet(_text: str, _share: float) -> None:
    return None


def killer(after: int) -> Callable[[str, float], None]:
    """Ends the training once so many steps are done."""

    def progress(text: str, _share: float) -> None:
        if text.startswith(f"step {after}/"):
            raise Killed

    return progress


def trained(trainer: Trainer, context: Any) -> Outcome:
    found = lessons(context.train, Encoder(trainer.model.tokenizer, trainer.model.context))
    return trainer.run(found, found[:4])


def weights(model: Model) -> dict[str, Any]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name].equal(other[name]) for name in one)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanwatt.checkpoint.SECONDS_BETWEEN", 0.0)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(("after", "precision"), [(1, "fp32"), (4, "fp32"), (12, "fp32"), (6, "fp16")])
def test_a_killed_training_ends_with_the_same_weights(
    after: int, precision: str, saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    schedule = replace(PACE, precision=precision)
    whole = load(saved("gpt2"))  # Has dropout: the dice must go on as well.
    expected = trained(Trainer(whole, schedule, 3, quiet), context)
    with pytest.raises(Killed):
        trained(Trainer(load(saved("gpt2")), schedule, 3, killer(after), tmp_path), context)
    model, steps = load(saved("gpt2")), list[str]()
    again = Trainer(model, schedule, 3, lambda text, _: steps.append(text), tmp_path)
    assert trained(again, context) == expected
    assert same(weights(model), weights(whole))
    assert len(steps) == expected.steps - after, "nothing is done twice"


def test_a_training_that_had_stopped_early_stays_stopped(
    often: None, saved: Callable[[str], Path], context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(Trainer, "_loss", lambda *_: next(losses))
    schedule = replace(PACE, checks=6, patience=2)
    with pytest.raises(Killed):
        trained(Trainer(load(saved("llama")), schedule, 0, killer(4), tmp_path), context)
    model = load(saved("llama"))
    before = weights(model)
    outcome = trained(Trainer(model, schedule, 0, quiet, tmp_path), context)
    assert (outcome.steps, outcome.stopped_early, outcome.best_loss) == (4, True, 1.0)
    assert same(before, weights(model)), "the best state was the first"


def test_another_training_does_not_go_on_from_it(
    often: None, saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        trained(Trainer(load(saved("llama")), PACE, 0, killer(3), tmp_path), context)
    changes: list[dict[str, Any]] = [{"seed": 1}, {"schedule": replace(PACE, learning_rate=1e-3)}]
    for change in changes:
        steps: list[str] = []
        trainer = Trainer(load(saved("llama")), PACE, 0, lambda text, _: steps.append(text), tmp_path)  # noqa: B023
        found = lessons(context.train, Encoder(trainer.model.tokenizer, trainer.model.context))
        state = Checkpoint(tmp_path, replace(trainer, **change)._identity(found, found[:4])).load()
        assert state is None, change
    found = lessons(context.train[:-1], Encoder(trainer.model.tokenizer, trainer.model.context))
    assert Checkpoint(tmp_path, trainer._identity(found, found[:4])).load() is None, "other examples"


def test_checkpoints_are_kept_once_in_a_while(saved: Callable[[str], Path], context: Any, tmp_path: Path) -> None:
    trained(Trainer(load(saved("llama")), PACE, 0, quiet, tmp_path), context)
    assert not (tmp_path / FILE).exists(), "this training is shorter than the time between two"
    assert not (tmp_path / CURVE).exists(), "without a meter there is nothing to tell"
    trained(Trainer(load(saved("llama")), PACE, 0, quiet), context)


@pytest.mark.parametrize("broken", [b"", b"half a file", b"PK\x03\x04" + b"0" * 500])
def test_a_broken_checkpoint_is_none(broken: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(broken)
    assert Checkpoint(tmp_path, "a").load() is None
    kept = Checkpoint(tmp_path, "a")
    kept.keep({"step": 3})
    assert kept.load() == {"step": 3, "identity": "a"}
    assert Checkpoint(tmp_path, "b").load() is None
    assert [path.name for path in tmp_path.iterdir()] == [FILE], "no draft is left"


def test_a_checkpoint_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        Checkpoint(tmp_path / "gone", "a").keep({"step": 3})


def test_passes_add_up_to_the_same_step(saved: Callable[[str], Path], context: Any) -> None:
    ends = []
    for at_once in (None, 1, 3):
        model = load(saved("llama"))
        trained(Trainer(model, replace(PACE, at_once=at_once), 0, quiet), context)
        ends.append(weights(model))
    for name, value in ends[0].items():
        assert value.allclose(ends[1][name], atol=2e-4), name
        assert value.allclose(ends[2][name], atol=2e-4), name


def test_computing_again_gives_the_same_weights(saved: Callable[[str], Path], context: Any) -> None:
    ends = []
    for checkpointing in (False, True):
        model = load(saved("llama"))
        trained(Trainer(model, replace(PACE, checkpointing=checkpointing), 0, quiet), context)
        ends.append(weights(model))
        assert not getattr(model.module.model, "gradient_checkpointing", False)
    for name, value in ends[0].items():
        assert value.allclose(ends[1][name], atol=1e-5), name


def test_fp16_scales_the_loss_and_keeps_the_weights_in_fp32(saved: Callable[[str], Path], context: Any) -> None:
    import torch

    model, scaled = load(saved("llama")), list[float]()
    real = torch.amp.GradScaler.scale

    def scale(self: Any, loss: Any) -> Any:
        scaled.append(self.get_scale())
        return real(self, loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.amp.GradScaler, "scale", scale)
        outcome = trained(Trainer(model, replace(PACE, precision="fp16"), 0, quiet), context)
    assert scaled and scaled[0] > 1000
    assert outcome.best_loss is not None and outcome.first_loss is not None
    assert outcome.best_loss < outcome.first_loss
    assert {str(p.dtype) for p in model.module.parameters()} == {"torch.float32"}


def ticking(joules_each: float = 10.0) -> Callable[[], Reading]:
    times = iter(range(1, 10_000))

    def read() -> Reading:
        now = float(next(times))
        spent = joules_each * now
        counter = Counter(spent, spent, spent, Provenance.MEASURED, "rapl", "package", now)
        return Reading(now, now, {"package-0": counter})

    return read


def test_the_curve_tells_what_each_loss_took(
    often: None, saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        trained(Trainer(load(saved("llama")), PACE, 0, killer(8), tmp_path, ticking()), context)
    told: list[str] = []
    trainer = Trainer(load(saved("llama")), PACE, 0, lambda text, _: told.append(text), tmp_path, ticking())
    outcome = trained(trainer, context)
    curve = read(tmp_path)
    assert curve is not None
    points = curve.points
    assert [point.step for point in points] == [0, 4, 8, 12]
    assert points[0].validation_loss == outcome.first_loss
    spent = [point.joules for point in points if point.joules is not None]
    assert len(spent) == 4
    assert spent == sorted(spent) and len(set(spent)) == 4, "what was spent before the kill counts"
    assert curve.least_loss == outcome.best_loss
    assert curve.cost_to(outcome.best_loss or 0.0, "joules") in spent
    assert curve.cost_to(-1.0, "joules") is None
    assert re.fullmatch(r"step 12/12, loss \d+\.\d{3}, \d+\.\d{3} in validation, \d+ tokens/s, .* J", told[-1])
    assert read(tmp_path / "none") is None


def test_spent_is_known_only_where_all_of_it_is() -> None:
    known = Measurement("a", 1, 2, {"p": Energy(5.0, provenance=Provenance.MEASURED, scope="package")})
    rough = Measurement("a", 1, 2, {"p": Energy(5.0, provenance=Provenance.ESTIMATED, scope="package")})
    unknown = Measurement("a", 1, 2)
    assert Spent().plus(known) == Spent(1, 2, 5.0, "measured")
    assert Spent().plus(known).plus(rough) == Spent(2, 4, 10.0, "estimated")
    assert Spent().plus(unknown).plus(known).joules is None
    assert Spent().plus(known).plus(unknown) == Spent(2, 4, None, "absent")
    assert Recorder(None).spent is None


KILL = """
import os, sys
import leanwatt.checkpoint, leanwatt.training
from leanwatt.ledger import Ledger
from leanwatt.measurement import Reading
from leanwatt.question import Example, Prompt, Score
from leanwatt.recipe import Choice, Recipe, Variant
from leanwatt.variants import Maker, local_base
from pathlib import Path
import torch

torch.set_num_threads(1)
leanwatt.checkpoint.SECONDS_BETWEEN = 0.0
base, folder, after = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
ask = lambda i: Score(Prompt("Name the root cause.", f"alarm {i} at site {'ABCD'[i % 4]}", "Root cause:"), ("a", "b"))
examples = [Example(str(i), str(i), "train" if i % 4 else "validation", ask(i), "ab"[i % 2]) for i in range(32)]
seen = []
def progress(text, share):
    seen.append(text)
    if text.startswith(f"step {after}/"):
        os.kill(os.getpid(), 9)
variant = Variant(Recipe("b", (Choice("finetune", "lora", {"rank": 4, "dropout": 0.2, "batch": 4, "epochs": 2.0}),)))
folder.mkdir(exist_ok=True)
maker = Maker(variant, local_base(base, None), folder, Ledger(lambda: Reading(0.0, 0.0)), progress)
made = maker.make(lambda: examples)
import hashlib
print(len(seen), hashlib.sha256((made / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest())
print(sorted(p.name for p in folder.iterdir() if p.name.startswith(".")), (made / "curve.json").is_file())
"""


def test_a_real_kill_of_making_a_variant(saved: Callable[[str], Path], tmp_path: Path) -> None:
    def make(folder: str, after: int) -> Any:
        command = [sys.executable, "-c", KILL, str(saved("llama")), str(tmp_path / folder), str(after)]
        return subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ})

    whole = make("whole", 99)
    assert whole.returncode == 0, whole.stderr
    assert make("killed", 5).returncode == -signal.SIGKILL
    again = make("killed", 99)
    assert again.returncode == 0, again.stderr
    count, end, *rest = again.stdout.split(maxsplit=2)
    whole_count, whole_end, *whole_rest = whole.stdout.split(maxsplit=2)
    assert (end, rest) == (whole_end, whole_rest)
    assert int(whole_count) == 12 and int(count) == 7
    assert rest == ["[] True\n"]


RATES: dict[str, Any] = {"batch": 4, "epochs": 3.0}
METHODS = {
    "full fp32": [Choice("finetune", "full", RATES)],
    "full bf16 in passes": [Choice("finetune", "full", {**RATES, "precision": "bf16", "at_once": 2})],
    "full fp16": [Choice("finetune", "full", {**RATES, "precision": "fp16", "checkpointing": True})],
    "lora bf16": [Choice("finetune", "lora", {**RATES, "precision": "bf16", "dropout": 0.2, "checkpointing": True})],
    "lora int8": [Choice("finetune", "lora", {**RATES, "precision": "int8", "dropout": 0.2})],
    "lora nf4": [Choice("finetune", "lora", {**RATES, "precision": "nf4", "checkpointing": True})],
    "distill": [
        Choice("prune", "magnitude", {"sparsity": 0.5}),
        Choice("finetune", "distill", {**RATES, "at_once": 2, "checkpointing": True}),
    ],
    "a second one": [Choice("finetune", "full", RATES), Choice("finetune", "lora", {**RATES, "rank": 2})],
}


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("method", METHODS)
def test_every_way_of_fine_tuning_goes_on_to_the_same_model(
    method: str, saved: Callable[[str], Path], context: Any, tmp_path: Path
) -> None:
    if "int8" in method or "nf4" in method:
        pytest.importorskip("bitsandbytes")
    examples = [*context.train, *(replace(each, split="validation") for each in context.validation)]
    steps, told, last = METHODS[method], list[str](), list[int]()

    def make(name: str, progress: Callable[[str, float], None]) -> dict[str, bytes]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        variant = Variant(Recipe("b", tuple(steps)))
        maker = Maker(variant, local_base(str(saved("llama")), None), folder, Ledger(lambda: Reading(0, 0)), progress)
        made = maker.make(lambda: examples)
        assert not list(folder.glob(".*.work")), "a finished step leaves nothing"
        return {str(path.relative_to(made)): path.read_bytes() for path in sorted(made.rglob("*.safetensors"))}

    def fall(_text: str, _share: float) -> None:
        last.append(1)
        if len(last) == (12 + 7 if method == "a second one" else 7):
            raise Killed

    whole = make("whole", quiet)
    with pytest.raises(Killed):
        make("killed", fall)
    assert make("killed", lambda text, _: told.append(text)) == whole != {}
    assert told[0].startswith("step 8/12")
