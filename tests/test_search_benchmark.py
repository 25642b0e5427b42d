"""The benchmark of searches, on a grid that is made up: what it charges, what it calls a success, what it compares."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from invented import PRIMARIES, Truth, World
from test_pipeline import study_of

from leanwatt.measurement import Measurement
from leanwatt.recipe import Choice, Fidelity, Trial, digest
from leanwatt.record import Record
from leanwatt.store import Store
from leanwatt.study import Study

PRUNINGS = ("wanda", "magnitude", "width", "depth", "heads", "vocabulary", "sparsegpt")
BITS = ("gptq", "awq", "nf4", "cast", "smoothquant", "round_to_nearest", "float8")


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "search_benchmark", Path(__file__).parent.parent / "benchmarks" / "search.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["search_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def luck(name: str, what: str, seed: int) -> float:
    return int(digest([name, what, seed])[:8], 16) / 0xFFFFFFFF


def a_world(seed: int) -> World:
    """64 variants; each pruning and each number of bits has a price and a loss of its own."""
    truths = {}
    for pruning in ("", *PRUNINGS):
        for bits in ("", *BITS):
            parts = [part for part in (pruning, bits) if part]
            cost = 1.0
            for part in parts:
                cost *= 0.4 + 0.6 * luck(part, "cost", seed)
            lost = sum(0.25 * luck(part, "loss", seed) ** 2 for part in parts)
            truths["+".join(parts) or "plain"] = Truth(cost=cost, right=0.9 - lost, making=1.0, only=("root_cause",))
    settings: dict[str, Any] = {
        "steps": [
            {"finetune": [{"full": {"precision": "fp32"}}]},
            {"prune": ["none", *PRUNINGS]},
            {"quantize": ["none", *BITS]},
        ],
        "engine": "openvino",
        "protocol": {"quick": {"rounds": 3}},
    }
    return World(settings, truths, tasks=("root_cause",), examples=1500, noise=0.002)


def graded(world: World, trial: Trial, examples: int) -> Record:
    """As few examples tell it: the error of a share, drawn once per trial."""
    truth = world.truth(trial)
    error = (luck(trial.label, f"error {examples}", 0) - 0.5) * 0.5 / examples**0.5
    stage = Measurement(
        "grade/root_cause", 50, examples * truth.cost, world._devices("x", 0, examples * truth.cost), answers=examples
    )
    load = Measurement("load", 2, 2, world._devices("load", 0, 20.0))
    record = world._graded("grade", trial, truth.right)
    return replace(record, measurements=(load, stage), metrics={"root_cause": {"macro_f1": truth.right + error}})


def a_grid(bench: ModuleType, seed: int) -> Any:
    world = a_world(seed)
    space = world.trials()
    records = [r for r in world.records() if r.job != "grade"]
    records += [graded(world, trial, 1500) for trial in space]
    for examples in bench.RUNGS:
        low = [bench.lowered(trial, examples) for trial in space]
        makes = [record for record in records if record.job == "make" and record.trial.variant.fidelity == Fidelity()]
        records += [replace(r, trial=bench.lowered(r.trial, examples)) for r in makes]
        records += [graded(world, trial, examples) for trial in low]
    assert world.study.tasks[0].name in PRIMARIES
    return bench.Recorded(world.study, tuple(records), world.ranking(records=records), tuple(space))


@pytest.fixture(scope="module")
def grid(bench: ModuleType) -> Any:
    return a_grid(bench, 0)


def test_shared_work_is_charged_once(grid: Any, bench: ModuleType) -> None:
    [plain, other, *_] = grid.space
    one, two = grid.cost([plain]), grid.cost([other])
    tuning = 500.0
    assert grid.in_joules
    assert grid.cost([plain, other]) == pytest.approx(one + two - tuning)
    assert grid.cost([plain, plain]) == pytest.approx(one)
    glance = bench.lowered(plain, 64)
    assert grid.cost([glance]) < one, "fewer answers, and no weighing"
    assert grid.cost([plain, glance]) == pytest.approx(one + 20 + 64), "the variant is the same"


def test_a_part_of_a_stage_is_neither_charged_again_nor_a_step(bench: ModuleType) -> None:
    """Pruning that calibrates: its calibration is within it."""

    def with_parts(record: Record) -> Record:
        if record.job != "make" or record.measurements[0].within:
            return record
        whole = record.measurements[0]
        return replace(record, measurements=(whole.part("calibrate", (20.0, 20.0)), *record.measurements))

    plain = a_grid(bench, 0)
    parted = replace(plain, records=tuple(map(with_parts, plain.records)))
    some = plain.space[:9]
    assert parted.cost(some) == pytest.approx(plain.cost(some))


def test_the_grid_finds_its_optimum_for_all_it_takes(grid: Any, bench: ModuleType) -> None:
    found = bench._result(grid, grid.space)
    assert (found.ratio, found.share) == (1.0, 1.0)
    assert not found.succeeds, "it took too much"
    assert bench._result(grid, grid.space[:1]).ratio > 1.05
    assert bench._result(grid, []).ratio is None
    assert bench.Result(1.04, 0.19).succeeds


def test_halving_finds_it_for_less_than_blind_search(grid: Any, bench: ModuleType) -> None:
    search = Choice("search", "halving", {"rungs": 2, "examples": 32, "slack": 0.05})
    found = bench.replay(grid, search, 0)
    assert found.ratio is not None and found.ratio < 1.3
    assert found.share < 0.6
    blind = [bench.blind(grid, found.share, seed) for seed in range(3)]
    assert all(each.share <= found.share for each in blind)
    assert found.ratio <= min(each.ratio or 9.0 for each in blind) + 0.05


def test_the_table_judges_on_the_grid_that_was_left_out(bench: ModuleType, grid: Any) -> None:
    searches = [
        Choice("search", "halving", {"rungs": 1, "examples": 64}),
        Choice("search", "halving", {"rungs": 3, "examples": 16, "variants": 16}),
    ]
    lines = bench.judged({"a": grid, "b": a_grid(bench, 1)}, searches)
    assert len(lines) == 2 + 4
    assert lines[2].startswith("| a | 64 | halving(") and "| b |" in lines[2]
    assert lines[3].startswith("| a | 64 | random |")
    assert all(" of 10 |" in line for line in lines[2:])
    [one, other] = bench.every({"a": grid}, searches)[2:]
    assert one.startswith(f"| a | {searches[0]} |") and other.startswith(f"| a | {searches[1]} |")
    assert one.endswith(lines[2].split("|", 5)[5]) or other.endswith(lines[2].split("|", 5)[5]), "the same replay"


def test_what_was_not_recorded_cannot_be_replayed(bench: ModuleType, grid: Any) -> None:
    with pytest.raises(KeyError):
        bench.replay(grid, Choice("search", "halving", {"examples": 77}), 0)


def test_the_grids_are_studies_of_sixty_variants() -> None:
    from leanwatt import catalog

    for path in sorted((Path(__file__).parent.parent / "benchmarks" / "grids").glob("*.yaml")):
        study = Study.read(path)
        assert len({trial.label for trial in study.trials("d", 1) if not trial.is_baseline}) == 60
        for choice in study.choices():
            assert catalog.build(choice)


def test_recording_a_grid_and_reading_it_back(
    bench: ModuleType,
    saved: Callable[[str], Path],
    tickets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "RUNGS", (10,))
    study = study_of(saved("llama"), tickets, engine="transformers", baselines=["majority"])
    protocol = {"quick": {"rounds": 1, "window_seconds": 0.05}}
    study = Study.parse(study | {"tasks": study["tasks"][:1], "protocol": protocol})
    bench.record(study, tmp_path)
    grid = bench.recorded(study, Store(tmp_path))
    assert len(grid.space) == 3
    looks = [r for r in grid.records if r.trial.variant.fidelity == Fidelity(examples=10)]
    assert sorted(r.job for r in looks) == ["grade", "grade", "make", "make"]
    search = Choice("search", "halving", {"rungs": 1, "examples": 10})
    assert bench.replay(grid, search, 0).share > 1.0, "of two, both are tried in full, and the looks come on top"
    count = len(Store(tmp_path).records())
    bench.record(study, tmp_path)
    assert len(Store(tmp_path).records()) == count
