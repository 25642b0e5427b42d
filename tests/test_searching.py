"""A search inside the flow: what it looks at is never ranked, a budget ends it, and the ranking says what was left."""

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from invented import PRIMARIES, Truth, World, world
from test_pipeline import flow_of, study_of

from leanwatt.account import WALL
from leanwatt.budget import Budget
from leanwatt.measurement import Measurement
from leanwatt.plan import check
from leanwatt.recipe import Fidelity
from leanwatt.record import Record
from leanwatt.report import markdown
from leanwatt.sections import sections
from leanwatt.store import Store
from leanwatt.study import Study


@pytest.fixture
def tiny(saved: Callable[[str], Path], tickets: Path) -> dict[str, Any]:
    study = study_of(saved("llama"), tickets, engine="transformers", baselines=["majority"])
    return study | {"tasks": study["tasks"][:1], "protocol": {"quick": {"rounds": 1, "window_seconds": 0.05}}}


def jobs(records: list[Record], job: str) -> list[Record]:
    return [record for record in records if record.job == job]


def test_what_halving_looks_at_is_made_and_graded_and_nothing_more(tiny: dict[str, Any], tmp_path: Path) -> None:
    steps = [{"quantize": ["none", *({"round_to_nearest": {"bits": b, "group": 16}} for b in (8, 4))]}]
    told: list[Record] = []
    search = {"halving": {"rungs": 1, "examples": 10, "keep": 0.5}}
    ranking = flow_of(tiny | {"steps": steps, "search": search}, tmp_path, told).run()
    looks = [r for r in told if r.trial.variant.fidelity == Fidelity(examples=10)]
    assert len(jobs(looks, "grade")) == 3
    assert {record.job for record in looks} == {"make", "grade"}
    assert not any(m.stage == "check" for record in looks for m in record.measurements), "nothing here is weighed"
    in_full = [r for r in jobs(told, "grade") if r not in looks and not r.trial.is_baseline]
    assert all("logit_error_prefill" in record.facts for record in in_full), "what is weighed was checked"
    assert len(jobs(told, "grade")) - len(jobs(looks, "grade")) == 3, "the reference, half of two, and the baseline"
    assert len({r.trial.label for r in jobs(told, "weigh")}) == 3
    assert ranking.searched.glances == 3
    assert len(ranking.searched.not_tried) == 1
    assert len(ranking.entries) == 3
    assert all(isinstance(record.facts[WALL], float) for record in told)


def test_a_budget_ends_the_search_and_a_larger_one_goes_on(tiny: dict[str, Any], tmp_path: Path) -> None:
    def run(trials: int) -> Any:
        flow = flow_of(tiny | {"budget": {"trials": trials}}, tmp_path, told)
        needs = check(flow.bench.study, flow.store).needs
        return dataclasses.replace(flow, budget=Budget(flow.bench.study, needs)).run()

    told: list[Record] = []
    first = run(2)
    assert [r.trial.is_baseline for r in jobs(told, "grade")] == [False, True], "the reference, then the baseline"
    assert len(first.searched.not_tried) == first.searched.still_wanted == 1
    assert first.entry(first.reference).is_complete, "what was tried is weighed and ranked"
    assert any("1 variants were not tried" in each and "trials 2 of 2" in each for each in first.caveats)
    count = len(told)
    second = run(3)
    assert [r.job for r in told[count:]][:3] == ["make", "grade", "weigh"]
    assert second.searched.not_tried == ()
    assert len(second.entries) == 3
    assert Study.parse(tiny).budget == {}
    assert len(Store(tmp_path).records()) == len(told)


@pytest.fixture
def usual() -> World:
    return world(tfidf=Truth(cost=0.01, right=0.8, kernel="classical", only=("root_cause",)))


def lower(record: Record) -> Record:
    variant = replace(record.trial.variant, fidelity=Fidelity(examples=50))
    return replace(record, trial=replace(record.trial, variant=variant))


def test_glances_are_charged_and_not_ranked(usual: World) -> None:
    plain = usual.ranking()
    records = usual.records()
    glances = [lower(record) for record in records if record.job in ("make", "grade")]
    found = usual.ranking(records=[*records, *glances])
    assert found.entries == plain.entries
    assert found.searched.glances == 5
    assert found.totals.cpu_seconds > plain.totals.cpu_seconds
    assert found.searched.spent_on_glances is not None
    assert found.totals.cpu_seconds == pytest.approx(
        plain.totals.cpu_seconds + found.searched.spent_on_glances.cpu_seconds
    )
    assert not [each for each in found.caveats if "are left out" in each and "records" in each]


def test_what_the_search_left_out_has_no_line(usual: World) -> None:
    usual.settings["search"] = {"random": {"variants": 1}}
    every = usual.records()
    labels = list(dict.fromkeys(record.trial.label for record in every))
    gone = [label for label in labels if "wanda" in label]
    found = usual.ranking(records=[r for r in every if r.trial.label not in gone])
    assert {entry.label for entry in found.entries} == set(labels) - set(found.searched.not_tried)
    assert set(found.searched.not_tried) <= set(gone)
    assert found.searched.method == "random(variants=1)"
    page = markdown(found, sections(found, "again"))
    assert "What finding it took" in page
    assert f"not tried: {found.searched.not_tried[0]}".replace("|", "\\|") in page


def test_a_grid_that_was_stopped_keeps_its_missing_lines(usual: World) -> None:
    wanda = usual.label("wanda")
    records = [r for r in usual.records() if r.trial.label != wanda]
    assert usual.ranking(records=records).entry(wanda).status == "missing"
    usual.settings["budget"] = {"trials": 4}
    found = usual.ranking(records=records)
    assert found.searched.not_tried == (wanda,)
    assert found.searched.still_wanted == 1


def test_pay_back_of_the_whole_study(usual: World) -> None:
    found = usual.ranking()
    spot = found.entry(found.sweet_spot.label)  # type: ignore[union-attr]
    own = found.entry(found.reference)
    assert found.searched.payback_tickets is not None and spot.cost and own.cost and own.making
    spent = (found.totals.joules or 0.0) - (own.making.joules or 0.0)
    assert found.searched.payback_tickets == pytest.approx(spent / (own.cost.value - spot.cost.value))
    assert found.searched.payback_tickets > (spot.payback_tickets or 0.0)


def test_sharing_stands_in_the_report(usual: World) -> None:
    found = usual.ranking()
    assert found.searched.sharing.spent_cpu_seconds == 50
    assert found.searched.sharing.saved_cpu_seconds == 150, "four variants share one fine-tuning"
    assert found.searched.sharing.saved_joules == pytest.approx(1500)


def test_what_shares_a_model_with_what_was_tried_is_not_missing() -> None:
    """Pruned once, and tried in one of two engines: the other one was never wanted."""
    here = world()
    here.settings["engine"] = ["openvino", "transformers"]
    here.settings["search"] = "two_phase"
    labels = [trial.label for trial in here.trials() if not trial.is_baseline]
    pruned = [label for label in labels if "wanda" in label]
    fast = [label for label in pruned if "openvino" in label and "gptq" not in label]
    records = [r for r in here.records() if r.trial.label not in pruned or r.trial.label in fast]
    cheap = tuple(Measurement(f"grade/{task}", 1.0, 1.0, {}, answers=10) for task in PRIMARIES)
    dear = tuple(Measurement(f"grade/{task}", 9.0, 9.0, {}, answers=10) for task in PRIMARIES)
    metrics = {task: {metric: 0.8} for task, metric in PRIMARIES.items()}
    best = fast[0].replace(" > wanda(sparsity=0.5)", "")
    records = [
        replace(r, metrics=metrics, measurements=cheap if r.trial.label == best else dear) if r.job == "grade" else r
        for r in records
    ]
    table = here.ranking(records=records)
    assert {entry.label for entry in table.entries if "wanda" in entry.label} == set(fast)
    assert "missing" not in {entry.status for entry in table.entries}
