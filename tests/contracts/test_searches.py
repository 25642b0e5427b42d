"""One suite for every search: the same choices however often it was stopped, and only full trials at the end."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from leanwatt import catalog
from leanwatt.contracts import Search
from leanwatt.measurement import Energy, Measurement, Provenance
from leanwatt.recipe import Choice, Fidelity, Recipe, Trial, digest
from leanwatt.record import Record
from leanwatt.study import Study

SEARCHES: dict[str, list[dict[str, Any]]] = {
    "grid": [{}],
    "random": [{"variants": 4}, {"variants": 4, "seed": 1}],
    "halving": [{}, {"rungs": 3, "examples": 20, "steps": 10}, {"variants": 7, "keep": 0.3, "seed": 2}],
    "two_phase": [{}, {"weight": 0.9, "best": 2}],
    "optuna": [{"variants": 6, "startup": 3}, {"variants": 5, "startup": 2, "at_once": 2, "seed": 3}],
}
CASES = [(name, each) for name, settings_ in SEARCHES.items() for each in settings_]


def a_study(**changes: Any) -> Study:
    return Study.parse(
        {
            "name": "invented",
            "steps": [
                {"finetune": [{"lora": {"precision": "fp32"}}, {"lora": {"precision": "bf16"}}]},
                {"prune": ["none", {"magnitude": {"sparsity": 0.5}}, {"depth": {"remove": 1}}]},
                {"quantize": ["none", {"round_to_nearest": {"bits": 8}}, {"round_to_nearest": {"bits": 4}}]},
            ],
            "engine": ["transformers", "openvino"],
            "tasks": [{"root_cause": {"data": "t.csv"}}, {"response": {"data": "t.csv"}}],
            "baselines": ["majority", "tfidf"],
            **changes,
        }
    )


@cache
def spread(name: str, what: str) -> float:
    """0 to 1, the same for all seeds and fidelities of one variant."""
    return int(digest([what, name])[:8], 16) / 0xFFFFFFFF


def truth(trial: Trial) -> list[Record]:
    """What trying it comes to: one in ten cannot be made, one in ten cannot be graded."""
    if not trial.is_baseline and spread(str(trial.variant.recipe), "make") < 0.1:
        return [Record("make", trial, "failed", error="invented")]
    made = [] if trial.is_baseline else [Record("make", trial, "done")]
    if spread(trial.label, "grade") < 0.1:
        return [*made, Record("grade", trial, "refused", error="invented")]
    cost, quality = 0.1 + spread(trial.label, "cost"), spread(trial.label, "quality")
    energy = Energy(100 * cost, provenance=Provenance.MEASURED, source="rapl", scope="package")
    stages = tuple(
        Measurement(f"grade/{task}", cost, 10 * cost, {"package-0": energy}, answers=10)
        for task in ("root_cause", "response")
    )
    metrics = {"root_cause": {"macro_f1": quality}, "response": {"rouge_l": quality / 2}}
    return [*made, Record("grade", trial, "done", measurements=stages, metrics=metrics)]


def over(records: Sequence[Record]) -> set[str]:
    """Trials that were graded, and variants that could not be made."""
    graded = {record.trial.id for record in records if record.job == "grade"}
    return graded | {r.trial.variant.id for r in records if r.job == "make" and r.status != "done"}


def followed(
    search: Search, space: Sequence[Trial], known: Sequence[Record], pick: Callable[[list[Trial]], list[Trial]]
) -> list[Record]:
    """Do some of what is wanted, and ask again, until nothing is."""
    records = list(known)
    for _ in range(300):
        known_ids = over(records)
        wanted = search.wanted(space, records, [])
        missing = [trial for trial in wanted if not {trial.id, trial.variant.id} & known_ids]
        if not missing:
            return records
        records += [record for trial in pick(missing) for record in truth(trial)]
    raise AssertionError("it never ends")


def outcome(search: Search, space: Sequence[Trial], records: Sequence[Record]) -> set[str]:
    return {trial.id for trial in search.wanted(space, records, [])}


def all_of_it(missing: list[Trial]) -> list[Trial]:
    return missing


def front_half(missing: list[Trial]) -> list[Trial]:
    return missing[: max(1, len(missing) // 2)]


def test_every_search_is_in_this_suite() -> None:
    assert set(catalog.names("search")) == set(SEARCHES)


@pytest.mark.parametrize(("name", "given_"), CASES)
@settings(max_examples=5, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(cut=st.integers(0, 200), order=st.integers(0, 10_000))
def test_a_run_that_was_cut_anywhere_ends_with_the_same_choices(
    name: str, given_: dict[str, Any], cut: int, order: int
) -> None:
    study = a_study()
    space, search = study.trials("data", 1), catalog.build(Choice("search", name, given_))
    whole = followed(search, space, [], front_half)
    dice = random.Random(order)
    kept = whole[: cut % (len(whole) + 1)]
    dice.shuffle(kept)
    again = followed(
        catalog.build(Choice("search", name, given_)),
        space,
        kept,
        lambda missing: dice.sample(missing, dice.randint(1, len(missing))),
    )
    assert outcome(search, space, again) == outcome(search, space, whole)


@pytest.mark.parametrize(("name", "given_"), CASES)
def test_the_reference_and_the_baselines_are_always_tried_in_full(name: str, given_: dict[str, Any]) -> None:
    study = a_study(reference="starter > lora(precision=bf16) | openvino | batch 8")
    space = study.reference_first(study.trials("data", 1))
    assert space[0].label == study.reference
    search = catalog.build(Choice("search", name, given_))
    wanted = {trial.id for trial in search.wanted(space, [], [])}
    assert {t.id for t in space if t.is_baseline or t.label == study.reference} <= wanted
    final = search.wanted(space, followed(search, space, [], all_of_it), [])
    full = {trial.id for trial in space}
    assert len([t for t in final if t.id in full]) >= 3
    assert {trial.label for trial in final} <= {trial.label for trial in space}
    assert all(t.variant.fidelity != Fidelity() for t in final if t.id not in full)


@pytest.mark.parametrize(("name", "given_"), CASES)
def test_all_seeds_and_folds_of_a_variant_are_tried_together(name: str, given_: dict[str, Any]) -> None:
    study = a_study(seeds=[0, 1])
    space, search = study.trials("data", 2), catalog.build(Choice("search", name, given_))
    final = search.wanted(space, followed(search, space, [], all_of_it), [])
    full = {trial.id for trial in space}
    tried = [trial.label for trial in final if trial.id in full]
    assert {tried.count(label) % 4 for label in tried} == {0}


@pytest.mark.parametrize(("name", "given_"), CASES)
def test_a_space_of_the_reference_alone_is_enough(name: str, given_: dict[str, Any]) -> None:
    space = a_study(steps=[], engine="openvino", baselines=[]).trials("data", 1)
    search = catalog.build(Choice("search", name, given_))
    records = followed(search, space, [], all_of_it)
    assert space[0].id in outcome(search, space, records)


@pytest.mark.parametrize(("name", "given_"), CASES)
def test_records_of_something_else_change_nothing(name: str, given_: dict[str, Any]) -> None:
    study = a_study()
    space, search = study.trials("data", 1), catalog.build(Choice("search", name, given_))
    records = followed(search, space, [], all_of_it)
    strange = [r for t in study.trials("other data", 1) for r in truth(replace(t, batch=2))]
    assert outcome(search, space, [*strange, *records]) == outcome(search, space, records)
    assert Recipe("starter") == Recipe("starter", ())
