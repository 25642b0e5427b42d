"""What each search chooses: worked out by hand on invented records."""

from collections.abc import Mapping, Sequence

import pytest

from leanwatt.measurement import Energy, Measurement, Provenance
from leanwatt.recipe import Fidelity, Trial
from leanwatt.record import Record
from leanwatt.search._findings import Candidate, Findings, Shown, models
from leanwatt.search.halving import Halving, promising
from leanwatt.search.optuna import Optuna
from leanwatt.search.random import Random
from leanwatt.search.two_phase import TwoPhase, by_r
from leanwatt.study import Study


def space_of(**changes: object) -> list[Trial]:
    study = {
        "name": "a",
        "steps": [
            {"prune": ["none", {"magnitude": {"sparsity": 0.5}}, "depth"]},
            {"quantize": ["none", {"round_to_nearest": {"bits": 8}}, {"round_to_nearest": {"bits": 4}}]},
        ],
        "tasks": [{"root_cause": {"data": "t.csv"}}],
        "baselines": ["majority"],
        **changes,
    }
    return Study.parse(study).trials("data", 1)


def graded(trial: Trial, cost: float, quality: float, joules: float | None = None, status: str = "done") -> Record:
    energy = {} if joules is None else {"gpu-0": Energy(10 * joules, provenance=Provenance.MEASURED, scope="gpu")}
    stages = (Measurement("load", 9, 9), Measurement("grade/root_cause", 1, 10 * cost, energy, answers=10))
    metrics = {"root_cause": {"macro_f1": quality, "accuracy": 0.99}}
    return Record("grade", trial, status, measurements=stages, metrics=metrics)  # type: ignore[arg-type]


def name(trial: Trial) -> str:
    return "+".join(f"{step.name}{step.settings.get('bits', '')}" for step in trial.variant.recipe.steps) or "plain"


def full(wanted: Sequence[Trial]) -> set[str]:
    return {name(t) for t in wanted if t.variant.fidelity == Fidelity() and not t.is_baseline}


def done(wanted: Sequence[Trial], truth: Mapping[str, tuple[float, float]]) -> list[Record]:
    return [graded(trial, *truth[name(trial)]) for trial in wanted if not trial.is_baseline]


TRUTH = {
    "plain": (10.0, 0.90),
    "round_to_nearest8": (5.0, 0.90),
    "round_to_nearest4": (3.0, 0.88),
    "magnitude": (9.0, 0.87),
    "magnitude+round_to_nearest8": (4.0, 0.86),
    "magnitude+round_to_nearest4": (2.0, 0.30),
    "depth": (6.0, 0.70),
    "depth+round_to_nearest8": (2.5, 0.60),
    "depth+round_to_nearest4": (1.0, 0.50),
}


def test_findings_are_what_grading_showed() -> None:
    [plain, *_] = space = space_of(seeds=[0, 1])
    [candidate, *_] = models(space)
    assert candidate.trials == (space[0], space[1])
    assert Findings([]).shown(candidate) is None
    assert not Findings([graded(plain, 1.0, 0.5)]).is_over(candidate)
    both = Findings([graded(plain, 1.0, 0.5, 8.0), graded(space[1], 3.0, 0.7, 4.0)])
    assert both.is_over(candidate)
    assert both.shown(candidate) == Shown(pytest.approx(0.6), pytest.approx(2.0), pytest.approx(6.0))
    failed = Findings([graded(plain, 1.0, 0.5), graded(space[1], 3.0, 0.7, status="failed")])
    assert failed.is_over(candidate)
    assert failed.shown(candidate) is None
    unmade = Findings([Record("make", plain, "failed"), graded(space[1], 1.0, 0.5)])
    assert unmade.is_over(candidate)


def test_of_several_attempts_a_finished_one_counts() -> None:
    [plain, *_] = space_of()
    tries = [graded(plain, 1.0, 0.5), graded(plain, 2.0, 0.6, status="failed").again(1)]
    for records in (tries, tries[::-1]):
        shown = Findings(records).shown(Candidate("plain", (plain,)))
        assert shown is not None
        assert shown.cpu_seconds == 1.0


def test_an_estimate_is_no_reason_to_choose() -> None:
    [plain, *_] = space_of()
    energy = Energy(5.0, provenance=Provenance.ESTIMATED, scope="package")
    stage = Measurement("grade/root_cause", 1, 10, {"package-0": energy}, answers=10)
    record = Record("grade", plain, "done", measurements=(stage,), metrics={"root_cause": {"macro_f1": 0.5}})
    assert Findings([record]).shown(Candidate("plain", (plain,))) == Shown(0.5, 1.0, None)


def test_random_draws_by_name_and_seed() -> None:
    space = space_of()
    first, again, other = (full(Random(3, seed).wanted(space, [], [])) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == len(other) == 4
    larger = space_of(also=[{"steps": [{"merge": ["merge"]}], "engine": "openvino"}])
    kept = full(Random(3).wanted(larger, [], [])) & first
    assert len(kept) >= 3, "one more in the space takes one place at most"


def test_halving_keeps_the_cheap_among_the_good() -> None:
    space = space_of()
    search = Halving(rungs=2, keep=0.5, examples=50, slack=0.05)
    first = search.wanted(space, [], [])
    assert full(first) == {"plain"}
    rungs = [t for t in first if t.variant.fidelity.examples == 50]
    assert len(rungs) == 9
    second = search.wanted(space, done(first, TRUTH), [])
    again = {name(t) for t in second if t.variant.fidelity.examples == 100}
    # Good within 0.05 of 0.90, the cheapest first: 4 bits, magnitude with 8, 8 bits, magnitude; four of eight go on.
    assert again == {
        "plain",
        "round_to_nearest4",
        "magnitude+round_to_nearest8",
        "round_to_nearest8",
        "magnitude",
    }
    last = search.wanted(space, done(second, TRUTH), [])
    assert full(last) == {"plain", "round_to_nearest4", "magnitude+round_to_nearest8"}


def test_halving_waits_for_the_whole_rung_and_drops_what_failed() -> None:
    space, search = space_of(), Halving(rungs=1, examples=50)
    first = search.wanted(space, [], [])
    records = done(first, TRUTH)
    best = next(r for r in records if name(r.trial) == "round_to_nearest4" and r.trial.variant.fidelity.examples)
    rest = [record for record in records if record is not best]
    assert search.wanted(space, rest, []) == first
    broken = Record("make", best.trial, "failed", error="no room")
    assert "round_to_nearest4" not in full(search.wanted(space, [*rest, broken], []))


def test_halving_can_stay_with_what_is_tuned_alike() -> None:
    tunings = {"finetune": ["full", {"full": {"precision": "bf16"}}]}
    merges, prunes = {"merge": ["none", "merge"]}, {"prune": ["none", {"magnitude": {"sparsity": 0.5}}]}
    space = space_of(steps=[tunings, merges, prunes], reference="first")
    whole = Halving(rungs=1, examples=50).wanted(space, [], [])
    alike = Halving(rungs=1, examples=50, tuned_alike=True).wanted(space, [], [])
    looked = [[name(t) for t in some if t.variant.fidelity.examples == 50] for some in (whole, alike)]
    assert len(looked[0]) == 8
    assert looked[1] == ["full", "full+magnitude"]
    untuned = space_of()
    assert len(Halving(rungs=1, tuned_alike=True).wanted(untuned, [], [])) == 9 + 2, "all share the base itself"


def test_halving_asks_no_more_than_the_study_does_and_can_train_less() -> None:
    space = space_of(fidelity={"examples": 60})
    search = Halving(rungs=2, keep=0.5, examples=50, steps=20)
    first = search.wanted(space, [], [])
    looks = {t.variant.fidelity for t in first if not t.is_baseline}
    assert looks == {Fidelity(60, None), Fidelity(50, 20)}
    second = search.wanted(space, done(first, TRUTH), [])
    assert Fidelity(60, 40) in {t.variant.fidelity for t in second}


def test_what_is_promising_without_a_reference() -> None:
    shown = {"a": Shown(0.5, 3.0, None), "b": Shown(0.9, 2.0, None), "c": Shown(0.88, 1.0, None)}
    assert promising(shown, "gone", 0.05) == ["c", "b", "a"]
    assert promising(shown, "b", 0.0) == ["c", "a"]
    assert promising({}, "b", 0.0) == []


def test_joules_count_where_all_have_them() -> None:
    shown = {"a": Shown(0.9, 1.0, 5.0), "b": Shown(0.9, 2.0, 4.0), "r": Shown(0.9, 9.0, 9.0)}
    assert promising(shown, "r", 0.0) == ["b", "a"]
    assert promising({**shown, "r": Shown(0.9, 9.0, None)}, "r", 0.0) == ["a", "b"]


def test_two_phases_prune_only_the_best_precision() -> None:
    space, search = space_of(), TwoPhase(weight=0.5)
    first = search.wanted(space, [], [])
    assert full(first) == {"plain", "round_to_nearest8", "round_to_nearest4"}
    half = done(first, TRUTH)[:2]
    assert search.wanted(space, half, []) == first
    second = search.wanted(space, done(first, TRUTH), [])
    # R = 0.5 * 10 / (10 + J) + 0.5 * quality: 0.70, 0.783 and 0.825.
    assert full(second) - full(first) == {"magnitude+round_to_nearest4", "depth+round_to_nearest4"}
    quality_only = TwoPhase(weight=0.0, best=2)
    chosen = full(quality_only.wanted(space, done(first, TRUTH), [])) - full(first)
    assert chosen == {"magnitude", "depth", "magnitude+round_to_nearest8", "depth+round_to_nearest8"}


def test_r_without_a_reference_takes_the_mean() -> None:
    shown = {"a": Shown(0.9, 1.0, None), "b": Shown(0.9, 3.0, None)}
    assert by_r(shown, "gone", 0.5) == ["a", "b"]
    assert by_r({}, "gone", 0.5) == []


def test_optuna_goes_where_it_pays() -> None:
    """After a random start it asks for what stands on the front of cost and quality."""
    space = space_of()
    search, records = Optuna(variants=6, startup=3, seed=1), list[Record]()
    asked: list[str] = []
    for _ in range(20):
        wanted = [t for t in search.wanted(space, records, []) if not t.is_baseline]
        fresh = [t for t in wanted if t.id not in {r.trial.id for r in records}]
        if not fresh:
            break
        asked += [name(t) for t in fresh]
        records += done(fresh, TRUTH)
    assert len(asked) == len(set(asked)) == 7
    assert asked[0] == "plain"


def test_optuna_leaves_out_what_the_study_does_not_have() -> None:
    space = [t for t in space_of() if "depth" not in name(t) or name(t) == "depth"]
    known = {name(t) for t in space if not t.is_baseline}
    records = done(space, TRUTH)
    wanted = Optuna(variants=50, startup=2).wanted(space, records, [])
    assert full(wanted) == known


def test_optuna_hears_one_unit_only() -> None:
    space = space_of()
    records = [
        graded(trial, *TRUTH[name(trial)], joules=None if name(trial) == "depth" else 1.0)
        for trial in space
        if not trial.is_baseline
    ]
    assert full(Optuna(variants=8).wanted(space, records, [])) == set(TRUTH)
