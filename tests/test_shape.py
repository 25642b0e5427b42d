"""A shape is weighed phase by phase, is labelled as no quality, and never becomes a record."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
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
    assert all(0 <= each.facts[f"logit_error_{each.phase}"] < 0.05 for each in costs)
    assert found.table.splitlines()[2].endswith("| logits off by |")
    assert not [line for line in found.table.splitlines() if line.endswith("| - |")], "every row says how far it is off"
    assert len(list(tmp_path.glob("shape-*/reference-*.npz"))) == 4, "asked once for each model"
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
            if isinstance(item, str):  # The reference is asked first.
                yield None
                continue
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
        list(shape.phases(case, object(), Ledger(lambda: None), ()))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("phase", ["prefill", "step"])
def test_an_engine_that_computes_something_else_is_named_with_its_error_and_not_weighed(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Garbage at batch 1 only, as a known fast path gives."""
    from leanwatt.engine.openvino import _OpenVino

    true = getattr(_OpenVino, phase)

    def lying(self: Any, ids: Any, *rest: Any) -> Any:
        return true(self, ids, *rest) * (-1 if len(ids) == 1 else 1)

    monkeypatch.setattr(_OpenVino, phase, lying)
    told: list[str] = []
    plan = Plan(Shape(**SMALL), (Choice("engine", "openvino"),), (16,), (1, 3), ("random",), **QUICK)
    found = shape.profile(plan, tmp_path, told.append)
    costs = [each for each in found if isinstance(each, PhaseCost)]
    assert {each.case for each in costs} == {"openvino, 16 bit, batch 3, random"}
    [failed] = [each for each in found if isinstance(each, Failed)]
    wrong, right = ("prefill 2", "decode 0.0") if phase == "prefill" else ("decode 2", "prefill 0.0")
    assert wrong in failed.why and right in failed.why
    assert "its speed means nothing" in failed.why
    line = next(line for line in shape.table(found).splitlines() if line.startswith("- openvino, 16 bit, batch 1"))
    assert wrong in line


def test_figures_from_before_engines_were_checked_say_so() -> None:
    old = PhaseCost("e", "prefill", 10, 1.0, 1.0, None, "absent", {})
    assert shape.table([old]).splitlines()[-1].endswith("| - |")


def test_a_reference_that_dies_ends_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leanwatt.executor.local import Local

    monkeypatch.setattr(Local, "run", lambda _self, _job, items, **_: (WorkerDied(i, "killed") for i in items))
    plan = Plan(Shape(**SMALL), (Choice("engine", "openvino"),), bits=(16,), weights=("random",), **QUICK)
    with pytest.raises(StudyError, match=r"died on it \(killed\).*smaller shape"):
        shape.profile(plan, tmp_path)


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
    assert not [line for line in first.splitlines() if line.endswith("| - |")], "every row says how far it is off"
    kept = tmp_path / "outcomes.jsonl"
    weighed = [line for line in kept.read_text().splitlines() if '"why"' not in line]
    assert len(weighed) == 4, "two phases, random and shuffled weights"
    again = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert again.count("- 2:4, batch 1, random") == 1
    assert [line for line in kept.read_text().splitlines() if '"why"' not in line] == weighed


@pytest.fixture(scope="module")
def gpu_script() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "engines_gpu.py"
    spec = importlib.util.spec_from_file_location("engines_gpu", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["engines_gpu"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("lies", [False, True])
def test_the_script_for_a_gpu_weighs_only_what_computes_the_model(
    lies: bool, gpu_script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference multiplies the weights that the layers were rounded to, so that only lies differ from it."""
    from leanwatt.model import linears

    def coarse(module: Any, _precision: str) -> None:
        for layer in linears(module).values():
            layer.weight.data = (layer.weight.data * 64).round() / 64

    monkeypatch.setattr(gpu_script, "quantized", coarse)
    monkeypatch.setattr(gpu_script, "unpacked", lambda weight: weight.data.float() * (100 if lies else 1))
    shape.make(Shape(**SMALL), tmp_path / "model", "random", 16)
    plan = Plan(Shape(**SMALL), (Choice("engine", "transformers"),), (16,), (2,), ("random",), **QUICK)
    found = gpu_script.Weighing(tmp_path / "model", "cpu", False)((plan.cases[0], "int4"))
    if lies:
        assert found.case == "int4, batch 2, random"
        assert "DisagreementError" in found.why and "prefill" in found.why
    else:
        assert [each.phase for each in found] == ["prefill", "decode"]
        assert all(each.facts["logit_error_decode"] < 0.05 for each in found)


def test_the_script_for_a_gpu_unpacks_four_bits_as_they_were_packed(gpu_script: ModuleType) -> None:
    """Numbers from -8 to 7, two a byte; per group of a row a scale and an offset, which stand (groups, rows)."""
    import torch

    numbers = torch.arange(-8, 8).reshape(2, 8).to(torch.int8)
    scale, offset = torch.tensor([[0.5, 2.0], [0.25, 1.0]]), torch.tensor([[0.0, 3.0], [1.0, -1.0]])

    class Int4Tensor:
        qdata = (numbers[:, ::2] & 0xF) | (numbers[:, 1::2] << 4)

    packed: Any = Int4Tensor()
    packed.scale, packed.zero_point = scale, offset
    expected = numbers.float().reshape(2, 2, 4) * scale.T[..., None] + offset.T[..., None]
    assert gpu_script.unpacked(packed).equal(expected.reshape(2, 8))


def weighed(case: str, dtype: str, prefill: float, decode: float) -> list[PhaseCost]:
    """CPU-seconds per 1,000 tokens; three joules to the second."""
    facts = {"kernel": f"dense {dtype}", "weight_dtype": dtype, "logit_error_prefill": 0.01, "logit_error_decode": 0.03}
    each = {"prefill": (500, prefill / 2), "decode": (100, decode / 10)}
    return [
        PhaseCost(f"{case}, random", phase, tokens, 1.0, cpu, 3 * cpu, "estimated", facts)  # type: ignore[arg-type]
        for phase, (tokens, cpu) in each.items()
    ]


def test_the_table_of_the_engines_has_tickets_and_what_is_of_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    engines = importlib.import_module("engines")
    outcomes = [
        *weighed("openvino, 16 bit, batch 1", "bf16", 1.0, 10.0),
        *weighed("openvino, 16 bit, batch 1", "bf16", 1.0, 12.0),
        *weighed("openvino, 16 bit, batch 1", "bf16", 3.0, 99.0),
        *weighed("openvino, 16 bit, batch 8", "bf16", 1.0, 5.0),
        *weighed("openvino, 4 bit, batch 1", "int4", 2.0, 5.0),
        *weighed("openvino, 4 bit, batch 8", "int4", 2.0, 5.0),
        *weighed("transformers(compute=fp32), 16 bit, batch 1", "fp32", 4.0, 40.0),
        *weighed("transformers(compute=fp32), 16 bit, batch 8", "fp32", 4.0, 20.0),
        Failed("compiled, 8 bit, batch 1, random", "no compiler\nhere"),
    ]
    lines = engines.shape_lines(outcomes, 200, 100)
    head, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| "))
    table = {(row[0], row[1]): dict(zip(head, row, strict=True)) for row in rows[1:]}
    whole, four = table["openvino", "16 bit"], table["openvino", "4 bit"]
    assert (whole["300 tokens, batch 1"], whole["J, batch 1"]) == ("1.4", "4.2"), "200 read and 100 written, medians"
    assert (whole["of best 16 bit, batch 1"], whole["of fp32 eager, batch 1"]) == ("100%", "29%")
    assert (four["of best 16 bit, batch 1"], four["of best 16 bit, batch 8"]) == ("64%", "129%")
    assert table["transformers(compute=fp32)", "16 bit"]["of fp32 eager, batch 8"] == "100%"
    assert whole["off by"] == "0.03"
    assert lines[-1] == "- compiled, 8 bit, batch 1, random: no compiler"
    assert engines.shape_lines(outcomes[-1:], 200, 100)[-1] == lines[-1]
    blind = [replace(each, joules=None) for each in outcomes[:-2]]  # One batch of the last engine, and no joules.
    head, _, *rows = engines.shape_lines(blind, 200, 100)[:5]
    assert "J, batch 1" not in head
    assert rows[-1].startswith("| transformers") and rows[-1].count("| - ") > 3
