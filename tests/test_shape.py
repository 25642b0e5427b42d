"""A shape is weighed phase by phase, is labelled as no quality, and never becomes a record."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leanwatt import shape, verbs
from leanwatt.contracts import WorkerDied
from leanwatt.errors import StudyError, UnknownNameError
from leanwatt.recipe import Choice
from leanwatt.shape import Failed, PhaseCost, Plan, Shape

SMALL = {"vocabulary": 320, "hidden": 32, "layers": 2, "heads": 4, "inner": 64, "key_heads": 2, "context": 64}
SAME = Choice("executor", "local", {"process": "same"})
QUICK: dict[str, Any] = {"prompt": 8, "answer": 3, "rounds": 2, "window_seconds": 0.0, "executor": SAME}


def test_presets_have_the_size_of_their_name() -> None:
    for name, made in shape.PRESETS.items():
        wanted = float(name[:-1]) * {"m": 1e6, "b": 1e9}[name[-1]]
        assert made.parameters == pytest.approx(wanted, rel=0.3), name
    assert shape.PRESETS["134m"].parameters == pytest.approx(134.1e6, rel=1e-3)
    assert shape.parse("1b") is shape.PRESETS["1b"]


def test_shapes_are_checked() -> None:
    assert shape.parse(json.dumps(SMALL)) == Shape(**SMALL)
    with pytest.raises(StudyError, match="Did you mean '134m'"):
        shape.parse("134")
    with pytest.raises(StudyError, match="vocabulary, hidden"):
        shape.parse('{"hidden": 3}')
    with pytest.raises(StudyError, match="Give a JSON object"):
        shape.parse("{")
    with pytest.raises(StudyError, match="16, 8 and 4"):
        Plan(Shape(**SMALL), (), bits=(3,))
    with pytest.raises(StudyError, match="context of 64"):
        Plan(Shape(**SMALL), (), prompt=60, answer=5)


def test_two_engines_are_weighed_and_the_table_says_that_it_is_no_quality(tmp_path: Path) -> None:
    engines = ["openvino", "{transformers: {compute: fp32}}"]
    found = verbs.profile(json.dumps(SMALL), tmp_path, engines, bits=(16, 4), batches=(2,), **QUICK)
    costs = [each for each in found.outcomes if isinstance(each, PhaseCost)]
    assert len(costs) == len(found.outcomes) == 2 * 2 * 2 * 2 * 2, "engines, bits, weights, phases, rounds"
    assert {each.tokens for each in costs if each.phase == "prefill"} == {16}
    assert {each.tokens for each in costs if each.phase == "decode"} == {6}
    assert all(each.seconds > 0 and each.cpu_seconds >= 0 for each in costs)
    assert found.table.startswith("No quality")
    assert "| openvino, 4 bit, batch 2, shuffled | decode |" in found.table
    assert {each.facts["kernel"] for each in costs if "openvino, 4 bit" in each.case} & {
        "int4 weights, bf16",
        "int4 weights, fp32",
    }
    assert not list(tmp_path.rglob("records")), "nothing that a ranking reads"
    assert len(list(tmp_path.glob("shape-*"))) == 4, "kept for the next time"


def test_the_control_has_the_same_values_elsewhere(tmp_path: Path) -> None:
    from leanwatt.model import load

    for weights in ("random", "shuffled"):
        shape.make(Shape(**SMALL), tmp_path / weights, weights, 16)  # type: ignore[arg-type]
    first, second = (
        load(tmp_path / weights).module.model.layers[0].mlp.up_proj.weight.float() for weights in ("random", "shuffled")
    )
    assert first.flatten().sort().values.equal(second.flatten().sort().values)
    spread = [weight.square().mean(0).std() / weight.square().mean() for weight in (first, second)]
    assert spread[0] > 2 * spread[1], "columns differ in size as those of trained models do; shuffled ones do not"


def test_what_fails_is_named_and_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leanwatt.executor.local import Local

    asked: list[str] = []

    def die(_self: Any, _job: Any, items: Any, **_: Any) -> Any:
        for item in items:
            asked.append(item.label)
            yield WorkerDied(item, "a crash in native code") if item.batch == 1 else Failed(item.label, "too\nlong")

    monkeypatch.setattr(Local, "run", die)
    plan = Plan(Shape(**SMALL), (Choice("engine", "openvino"),), bits=(16,), weights=("random",), **QUICK)
    told: list[str] = []
    found = shape.profile(plan, tmp_path, told.append)
    assert len(asked) == 2, "the second round has nothing left"
    lines = shape.table(found).splitlines()
    assert "- openvino, 16 bit, batch 1, random: a crash in native code" in lines
    assert "- openvino, 16 bit, batch 8, random: too" in lines
    assert told[0] == "making random weights at 16 bits"


def test_an_engine_without_phases_is_named() -> None:
    case = Plan(Shape(**SMALL), (Choice("engine", "openvino"),), **QUICK).cases[0]
    from leanwatt.errors import RefusedError
    from leanwatt.ledger import Ledger

    with pytest.raises(RefusedError, match="phases"):
        list(shape.phases(case, object(), Ledger(lambda: None)))  # type: ignore[arg-type, return-value]


def test_unknown_engines_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'openvino'"):
        verbs.profile("134m", tmp_path / "x", ["openvin"])
    assert not (tmp_path / "x").exists()


def test_the_script_for_a_gpu_weighs_what_a_cpu_can_and_tries_failures_again(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "engines_gpu.py"
    command = [sys.executable, str(script), "--shape", json.dumps(SMALL), "--out", str(tmp_path), "--device", "cpu"]
    command += ["--precision", "fp32", "2:4", "--batch", "1", "--rounds", "1", "--seconds", "0.05"]
    command += ["--prompt", "8", "--answer", "3"]
    first = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "| fp32, batch 1, shuffled | decode |" in first
    assert "- 2:4, batch 1, random: RuntimeError" in first
    kept = tmp_path / "outcomes.jsonl"
    weighed = [line for line in kept.read_text().splitlines() if '"why"' not in line]
    assert len(weighed) == 4, "two phases, random and shuffled weights"
    again = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert again.count("- 2:4, batch 1, random") == 1
    assert [line for line in kept.read_text().splitlines() if '"why"' not in line] == weighed
