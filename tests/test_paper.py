"""The findings of the paper's study, on invented records: what is set is what must be found."""

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from invented import PRIMARIES, Truth, World

from leanwatt import catalog, starter
from leanwatt.curve import Curve, Point
from leanwatt.measurement import Provenance
from leanwatt.rank import rank
from leanwatt.ranking import Ranking
from leanwatt.recipe import Choice, Trial
from leanwatt.study import Study
from leanwatt.variants import Base, stage_keys

PAPER = Path(__file__).parents[1] / "examples" / "paper"
LORAS = [{"lora": {"precision": precision}} for precision in ("fp32", "bf16", "int8", "nf4")]
PRUNED = {"prune": ["none", {"magnitude": {"pattern": "2:4"}}]}
BITS = {"fp32": 32, "bf16": 16, "int8": 8, "nf4": 4}


@pytest.fixture(scope="module")
def findings() -> Iterator[ModuleType]:
    sys.path.insert(0, str(PAPER))
    try:
        yield importlib.import_module("findings")
    finally:
        sys.path.remove(str(PAPER))
        for name in ("findings", "paper_case"):
            sys.modules.pop(name, None)


@dataclass
class Paper(World):
    """Trials are told apart by how they were tuned, served and pruned: `bf16@16`, `bf16@16+2:4`."""

    usual: Truth = field(default_factory=Truth)

    def name(self, trial: Trial) -> str:
        if trial.is_baseline:
            return trial.engine.name
        steps = trial.variant.recipe.steps
        tuned = "+".join(str(step.settings["precision"]) for step in steps if step.room == "finetune")
        bits = [step.settings["bits"] for step in steps if step.room == "quantize"]
        served = bits[0] if bits else BITS[trial.engine.settings["compute"]]
        pruned = [str(step.settings.get("pattern", step.name)) for step in steps if step.room == "prune"]
        return "+".join([f"{tuned}@{served}", *pruned])

    def truth(self, trial: Trial) -> Truth:
        return self.truths.get(self.name(trial), self.usual)


def paper(truths: Mapping[str, Truth], **settings: Any) -> Paper:
    steps: list[dict[str, Any]] = [{"finetune": LORAS[1:2]}, PRUNED]
    served = [*steps, {"quantize": ["none", {"round_to_nearest": {"bits": 4}}]}]
    plain = {
        "steps": steps,
        "engine": {"openvino": {"compute": "fp32"}},
        "also": [{"steps": served, "engine": {"openvino": {"compute": "bf16"}}}],
        "baselines": ["majority"],
    }
    return Paper({**plain, **settings}, dict(truths), examples=200, tasks=("root_cause",))


def curve(cpu_seconds_to_one: float, joules: float | None = None, provenance: str = "absent") -> Curve:
    ends = (Point(0, 0, 0.0, None if joules is None else 0.0, 3.0), Point(9, 90, cpu_seconds_to_one, joules, 1.0))
    return Curve(ends, provenance)


def case(findings: ModuleType, world: Paper, curves: Mapping[tuple[str, int], Curve] | None = None) -> Any:
    records = world.records()

    @cache
    def ranked(reference: str, margin: float) -> Ranking:
        study = replace(world.study, reference=reference, margin=margin)
        return rank(study, {task: PRIMARIES[task] for task in world.tasks}, records, world.rows_of)

    named = {(world.label(name), (seed, 0)): each for (name, seed), each in (curves or {}).items()}
    return sys.modules["paper_case"].Case(world.study, ranked, named)


SIXTEEN_WINS = {
    "fp32@32": Truth(cost=1.0),
    "bf16@32": Truth(cost=1.0),
    "fp32@16": Truth(cost=0.4),
    "bf16@16": Truth(cost=0.4),
    "fp32@4": Truth(cost=0.6),
    "bf16@4": Truth(cost=0.6),
    "fp32@32+2:4": Truth(cost=0.9),
    "bf16@32+2:4": Truth(cost=0.9),
    "fp32@16+2:4": Truth(cost=0.3),
    "bf16@16+2:4": Truth(cost=0.3),
    "fp32@4+2:4": Truth(cost=0.5),
    "bf16@4+2:4": Truth(cost=0.5),
}


@pytest.fixture(scope="module")
def winning(findings: ModuleType) -> Any:
    curves = {("fp32@32", 0): curve(100.0), ("bf16@32", 0): curve(10.0)}
    world = paper(SIXTEEN_WINS)
    world.settings["steps"][0] = {"finetune": LORAS[:2]}
    return case(findings, world, curves)


def test_what_the_paper_found_is_found(findings: ModuleType, winning: Any) -> None:
    inference = findings.inference(winning)
    assert inference.verdict == "repeats"
    by_arm = dict(said.split(". ", 1)[0].split(": ") for said in inference.said)
    assert by_arm == {"lora(precision=bf16)": "repeats", "lora(precision=fp32)": "not run"}
    pruning = findings.pruning(winning)
    assert pruning.verdict == "repeats"
    assert "4 of 4 are certainly cheaper and non-inferior" in pruning.said[-1]


def test_16_bit_with_pruning_is_the_best_of_all_only_if_certainly_so(findings: ModuleType) -> None:
    one_arm = {"also": [{"steps": [{"finetune": LORAS[1:2]}, {"prune": [{"magnitude": {"pattern": "2:4"}}]}]}]}
    one_arm["also"][0]["engine"] = {"openvino": {"compute": "bf16"}}  # type: ignore[assignment]
    steps = [{"finetune": LORAS[:2]}]
    best = findings.best_of_all(case(findings, paper(SIXTEEN_WINS, steps=steps, **one_arm)))
    assert best.verdict == "repeats"
    worse = {**SIXTEEN_WINS, "bf16@16+2:4": Truth(cost=2.0)}
    assert findings.best_of_all(case(findings, paper(worse, steps=steps, **one_arm))).verdict == "does not repeat"
    assert findings.best_of_all(case(findings, paper(SIXTEEN_WINS, steps=steps, also=[]))).verdict == "not run"


def test_an_unfinished_study_says_so(findings: ModuleType) -> None:
    world = paper({}, steps=[{"finetune": LORAS[:2]}], also=[])
    found = case(findings, world)
    empty = replace(found, ranked=cache(lambda reference, margin: world.ranking(records=[])))
    told = findings.findings(empty)
    assert {each.verdict for each in told} == {"not run"}
    assert all(each.said for each in told)


def test_equal_variants_cannot_be_told_apart(findings: ModuleType) -> None:
    found = case(findings, paper({}))
    inference = findings.inference(found)
    assert inference.verdict == "cannot tell"
    assert any("not told apart" in said for said in inference.said)
    assert findings.pruning(found).verdict != "repeats"
    assert findings.best_of_all(found).verdict == "cannot tell"


def test_another_precision_that_wins_is_a_finding(findings: ModuleType) -> None:
    truths = {**SIXTEEN_WINS, "fp32@4": Truth(cost=0.1), "bf16@4": Truth(cost=0.1)}
    inference = findings.inference(case(findings, paper(truths)))
    assert inference.verdict == "does not repeat"
    assert "Certainly higher R" in " ".join(inference.said)


def test_cheaper_and_worse_pruning_does_not_repeat(findings: ModuleType) -> None:
    truths = {name: Truth(t.cost, right=0.6) if "2:4" in name else t for name, t in SIXTEEN_WINS.items()}
    assert findings.pruning(case(findings, paper(truths))).verdict == "does not repeat"


@dataclass
class Moody(Paper):
    """With one seed everything is as it is; with the other one, some are different."""

    others: Mapping[str, Truth] = field(default_factory=dict)

    def truth(self, trial: Trial) -> Truth:
        there = self.others if trial.variant.seed else {}
        return there.get(self.name(trial), super().truth(trial))


def test_what_one_seed_says_and_another_does_not_is_not_certain(findings: ModuleType) -> None:
    """The worst of the seeds is what a ranking is cautious with; here both ends matter."""
    settings = paper({}, also=[], seeds=[0, 1], steps=[{"finetune": LORAS[:1]}, PRUNED]).settings
    better, worse = {"fp32@32+2:4": Truth(right=0.97)}, {"fp32@32+2:4": Truth(right=0.8)}
    usual = Truth(right=0.9)
    world = Moody(settings, better, examples=600, tasks=("root_cause",), usual=usual, others=worse)
    told = findings.raises(case(findings, world))
    assert told.verdict == "cannot tell", "one seed gains more than the margin, the other loses"
    [pruned, plain] = world.label("fp32@32+2:4"), world.label("fp32@32")
    found = case(findings, world).ranked(plain, 0.02).entry(pruned).tasks["root_cause"]
    assert set(found.loss_by_seed) == {"0", "1"}
    assert found.loss == replace(found.loss_by_seed["1"], p_higher=found.loss.p_higher)
    mean = sum(loss.difference for loss in found.loss_by_seed.values()) / 2
    change = sys.modules["paper_case"].change(found)
    assert (change.value, change.high) == (pytest.approx(mean), found.loss_by_seed["0"].high)
    assert (change.low, change.p_higher) == (found.loss_by_seed["1"].low, found.loss.p_higher)
    both = Moody(settings, better, examples=600, tasks=("root_cause",), usual=usual, others=better)
    assert findings.raises(case(findings, both)).verdict == "repeats"


@pytest.mark.parametrize(("kernel", "expected"), [("dense float32", "repeats"), ("dense bf16", "cannot tell")])
def test_cpu_seconds_of_unlike_kernels_must_differ_by_more(findings: ModuleType, kernel: str, expected: str) -> None:
    """12 % less CPU time is certain in one kernel, and no energy in another."""
    world = paper({"bf16@32+2:4": Truth(0.88, kernel=kernel)}, also=[])
    world.provenance = Provenance.ABSENT
    found = case(findings, world)
    names = [world.label("bf16@32+2:4"), world.label("bf16@32")]
    assert findings.best(found, names[:1], names[1:], "it")[0] == expected


def test_a_precision_that_came_down_only_once_is_left_out(findings: ModuleType) -> None:
    world = paper({}, steps=[{"finetune": LORAS[:3]}], also=[], seeds=[0, 1])
    costs = {"fp32": 30.0, "bf16": 10.0, "int8": 1.0}
    curves_ = {(f"{arm}@32", seed): curve(cost) for arm, cost in costs.items() for seed in (0, 1)}
    stuck = Curve((Point(0, 0, 0.0, None, 3.0), Point(9, 90, 1.0, None, 2.5)), "absent")
    found = case(findings, world, {**curves_, ("int8@32", 1): stuck})
    assert findings.level(found, findings.arms(found), None) == 2.5, "the best one of the worst"
    told = findings.fine_tuning(found, 1.0)
    [left_out] = [said for said in told.said if said.startswith("Left out: lora(precision=int8)")]
    assert left_out.endswith("since 1 of 2 runs never came down to a validation loss of 1.000.")
    assert "int8" not in told.said[0], "nor is it the next best"
    alone = findings.fine_tuning(case(findings, world, {**curves_, ("bf16@32", 1): stuck}), 1.0)
    assert alone.verdict == "not run"
    assert alone.said[0] == "No LoRA at 16 bit has a cost to a common validation loss."
    assert "lora(precision=bf16)" in alone.said[1] and "1 of 2 runs" in alone.said[1]
    lost = {key: each for key, each in curves_.items() if key != ("int8@32", 1)}
    assert "not every run left a curve" in " ".join(findings.fine_tuning(case(findings, world, lost), 1.0).said)


SEEDS = (0, 1, 2, 3)


def curves(costs: Mapping[str, float], noise: float = 0.02) -> dict[tuple[str, int], Curve]:
    return {
        (f"{arm}@32", seed): curve(cost * (1 + noise * ((seed * 7 + len(arm)) % 3)))
        for arm, cost in costs.items()
        for seed in SEEDS
    }


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ({"fp32": 100.0, "bf16": 30.0}, "repeats"),
        ({"fp32": 30.0, "bf16": 100.0}, "does not repeat"),
        ({"fp32": 100.0, "bf16": 100.0}, "cannot tell"),
    ],
)
def test_fine_tuning_is_compared_at_one_validation_loss(
    findings: ModuleType, costs: dict[str, float], expected: str
) -> None:
    world = paper({}, steps=[{"finetune": LORAS[:2]}], also=[], seeds=list(SEEDS))
    found = case(findings, world, curves(costs))
    assert findings.fine_tuning(found, None).verdict == expected
    assert findings.level(found, findings.arms(found), None) == 1.0
    halfway = findings.fine_tuning(found, 2.0)
    assert halfway.verdict == expected, "half the way down costs half"
    [(least, most)] = re.findall(r"loss of 2.000, .* takes \d+ % \((\d+) to (\d+) %\)", "\n".join(halfway.said))
    assert int(least) <= round(100 * costs["fp32"] / costs["bf16"]) <= int(most)


def test_fine_tuning_of_one_seed_is_never_certain(findings: ModuleType) -> None:
    world = paper({}, steps=[{"finetune": LORAS[:2]}], also=[])
    found = case(findings, world, {("fp32@32", 0): curve(100.0), ("bf16@32", 0): curve(10.0)})
    told = findings.fine_tuning(found, None)
    assert told.verdict == "cannot tell"
    assert "a cost of one run has no interval" in told.said[-1]


def test_fine_tuning_without_curves_was_not_run(findings: ModuleType) -> None:
    world = paper({}, steps=[{"finetune": LORAS[:2]}], also=[])
    assert findings.fine_tuning(case(findings, world), None).verdict == "not run"
    one = case(findings, world, {("fp32@32", 0): curve(100.0)})
    assert "at 16 bit" in findings.fine_tuning(one, None).said[0]


def test_joules_count_only_where_all_were_measured(findings: ModuleType) -> None:
    world = paper({}, steps=[{"finetune": LORAS[:2]}], also=[])
    both = {("fp32@32", 0): curve(10.0, 500.0, "measured"), ("bf16@32", 0): curve(20.0, 100.0, "measured")}
    found = case(findings, world, both)
    assert list(findings.costs_to(found, world.label("fp32@32"), 1.0).values()) == [500.0]
    mixed = {**both, ("bf16@32", 0): curve(20.0, 100.0, "estimated")}
    found = case(findings, world, mixed)
    assert list(findings.costs_to(found, world.label("fp32@32"), 1.0).values()) == [10.0]


@pytest.mark.parametrize(
    ("right", "examples", "expected"),
    [
        (0.97, 600, "repeats"),
        (0.97, 50, "cannot tell"),
        (0.9, 600, "does not repeat"),
        (0.7, 600, "does not repeat"),
    ],
)
def test_higher_quality_is_a_matter_of_superiority(
    findings: ModuleType, right: float, examples: int, expected: str
) -> None:
    truths = {"fp32@32": Truth(right=0.9), "fp32@32+2:4": Truth(right=right)}
    world = paper(truths, also=[])
    world.examples = examples
    world.settings["steps"][0] = {"finetune": LORAS[:1]}
    told = findings.raises(case(findings, world))
    assert told.verdict == expected
    assert "Compared 1 times" in told.said[0]


def test_the_control_of_a_recovery_has_the_same_steps(findings: ModuleType) -> None:
    """Pruning and training on looks better than no training on, and is not better than training on alone."""
    truths = {"fp32@32": Truth(right=0.8), "fp32+fp32@32": Truth(right=0.9), "fp32+fp32@32+2:4": Truth(right=0.9)}
    steps = [{"finetune": LORAS[:1]}, PRUNED, {"finetune": LORAS[:1]}]
    also = [{"steps": [{"finetune": LORAS[:1]}], "engine": {"openvino": {"compute": "fp32"}}}]
    told = findings.raises(case(findings, paper(truths, steps=steps, also=also, seeds=[0, 1])))
    assert told.verdict == "does not repeat"
    assert any(said.startswith("The extra training alone") and "+0.1" in said for said in told.said)


@pytest.mark.parametrize("right", [0.9, 0.99])
def test_what_trains_on_after_pruning_needs_several_seeds(findings: ModuleType, right: float) -> None:
    truths = {"fp32+fp32@32": Truth(right=0.9), "fp32+fp32@32+2:4": Truth(right=right)}
    steps = [{"finetune": LORAS[:1]}, PRUNED, {"finetune": LORAS[:1]}]
    told = findings.raises(case(findings, paper(truths, steps=steps, also=[])))
    assert told.verdict == "cannot tell"
    assert any("one of each" in said for said in told.said)
    words = "Certainly higher" if right > 0.9 else "None can gain"
    assert told.said[-1].startswith(words), "what holds for these models is said all the same"


def test_a_table_without_rows_is_left_out_of_the_page(findings: ModuleType) -> None:
    from leanwatt.sections import Grid, Section

    empty, full = (Section("a", grid=Grid(("variant",), rows)) for rows in ((), (("plain",),)))
    assert findings.without_empty_grid(empty).grid is None
    assert findings.without_empty_grid(full) == full


def test_the_page_has_every_finding_and_table(findings: ModuleType, winning: Any) -> None:
    found = winning
    parts = findings.sections(found)
    text = findings.markdown(found.plain, parts)
    for each in findings.findings(found):
        assert f"{each.claim}: {each.verdict}" in text
    tables = {part.title: part.grid for part in parts if part.grid is not None}
    table = tables["Fine-tuning"]
    tuning = {row[0].split(" | ")[0]: dict(zip(table.head, row, strict=True)) for row in table.rows}
    assert set(tuning) == {"lora(precision=fp32)", "lora(precision=bf16)"}
    sixteen = tuning["lora(precision=bf16)"]
    assert (sixteen["to loss 1.000"], sixteen["least loss"], sixteen["phi"]) == ("10", "1", "0.909")
    assert float(sixteen["R"]) == pytest.approx(0.5 * 0.909 + 0.5 * 0.9, abs=0.002)
    assert tuning["lora(precision=fp32)"]["phi"] == "0.5"
    assert {row[1] for row in tables["Inference"].rows} == {"32", "16", "4"}
    assert len(tables["Pruning"].rows) == 4
    assert "general knowledge" in text
    assert "<svg" not in findings.page(found.plain, parts)[:100]


def test_the_command_reads_a_store_and_writes_the_page(
    findings: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    from leanwatt.store import Store

    world = paper(SIXTEEN_WINS)
    tasks = [{task: {"data": "tickets.csv"}} for task in world.tasks]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"name": "invented", "tasks": tasks, **world.settings}))
    store = Store(tmp_path / "out")
    for record in world.records():
        rows = world.rows.get(record.predictions or "", [])
        store.add(replace(record, predictions=None), rows)
        if record.job == "grade" and world.name(record.trial) == "bf16@32":
            tuned = store.variants / stage_keys(record.trial.variant, Base("starter", "", starter.key()))[1]
            tuned.mkdir()
            curve(10.0).save(tuned)
    monkeypatch.setattr(sys, "argv", ["findings.py", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")])
    findings.main()
    assert "repeats          16 bit is the best precision for inference" in capsys.readouterr().out
    assert "16 bit is the best precision for inference: repeats" in (tmp_path / "out" / "findings.md").read_text()
    assert (tmp_path / "out" / "findings.html").stat().st_size > 1000
    found = findings.case_of(Study.read(tmp_path / "study.yaml"), tmp_path / "out")
    sharing = {trial.label for trial in world.trials() if not trial.is_baseline}
    assert set(found.curves) == {(label, (0, 0)) for label in sharing}, "all rest on that fine-tuning"


@pytest.mark.parametrize("name", ["embedded", "microwave", "cloud_incidents", "recovery"])
def test_the_studies_of_the_paper_hold_what_the_findings_ask_for(findings: ModuleType, name: str) -> None:
    study = Study.read(PAPER / f"{name}.yaml")
    found = {trial.label: trial for trial in study.trials("data", 1) if not trial.is_baseline}
    ours = sys.modules["paper_case"]
    assert study.reference == "first"
    assert all(ours.served_bits(trial) for trial in found.values())
    assert any(ours.has_pattern(trial) and ours.served_bits(trial) == 16 for trial in found.values())
    made = ours.Case(study, lambda reference, margin: None, {})
    for trial in found.values():
        assert made.without(trial, ("prune",)) in found
        assert made.without(trial, ("prune", "quantize")) in found
    if name == "recovery":
        repairs = {step for trial in found.values() for step in ours.steps_of(trial, "finetune")[1:]}
        assert all(catalog.build(step).patience >= catalog.build(step).checks for step in repairs), "none stops early"
        assert all(
            len(ours.steps_of(trial, "finetune")) == 2 for trial in found.values() if trial.variant.recipe.steps[1:]
        )
        return
    tuned = {ours.tuned_bits(trial) for trial in found.values() if ours.steps_of(trial, "finetune")}
    assert tuned == {32, 16, 8, 4}
    assert {ours.served_bits(trial) for trial in found.values()} == {32, 16, 8, 4}
    loras = [dict(s.settings) for t in found.values() for s in ours.steps_of(t, "finetune") if s.name == "lora"]
    assert len({str({**each, "precision": ""}) for each in loras}) == 1, "all but the precision is equal"


def test_the_file_with_questions_keeps_a_ticket_on_one_side(tmp_path: Path) -> None:
    import csv

    sys.path.insert(0, str(PAPER))
    try:
        module = importlib.import_module("make_data")
    finally:
        sys.path.remove(str(PAPER))
        sys.modules.pop("make_data", None)
    module.main(tmp_path / "tickets.csv", 400)
    with (tmp_path / "tickets.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert len(rows) == 400
    for row in rows.values():
        assert row["answer"] in (row["cause"], row["equipment"], row["place"], row["action"])
    study = Study.read(PAPER / "embedded.yaml")
    for choice in study.tasks:
        settings = {**choice.settings, "data": {**choice.settings["data"], "path": str(tmp_path / "tickets.csv")}}
        examples = catalog.build(Choice("tasks", choice.name, settings)).examples(0)
        assert all(example.split == rows[example.id]["split"] for example in examples)
