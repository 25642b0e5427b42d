"""Choices, recipes and trials: identity follows content and nothing else."""

import pickle
import subprocess
import sys
from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leanwatt.errors import StudyError
from leanwatt.recipe import Choice, Fidelity, Recipe, Trial, Variant, digest
from leanwatt.record import Record, record_id

WANDA = Choice("prune", "wanda", {"sparsity": 0.5})
TRIAL = Trial(Variant(Recipe("starter", (WANDA,)), "d"), Choice("engine", "transformers"), 8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("wanda", Choice("prune", "wanda")),
        ({"wanda": None}, Choice("prune", "wanda")),
        ({"wanda": {"sparsity": 0.5}}, WANDA),
    ],
)
def test_a_choice_is_a_name_or_a_name_with_settings(written: object, read: Choice) -> None:
    assert Choice.parse("prune", written) == read


@pytest.mark.parametrize("wrong", [None, 5, [], {}, {"a": {}, "b": {}}, {"wanda": 0.5}, {"wanda": ["sparsity"]}])
def test_anything_else_is_refused_with_the_room_and_the_value(wrong: object) -> None:
    with pytest.raises(StudyError, match=r"prune.*got .*(write a name|written as)"):
        Choice.parse("prune", wrong)


def test_words_for_people() -> None:
    assert str(WANDA) == "wanda(sparsity=0.5)"
    assert TRIAL.label == "starter > wanda(sparsity=0.5) | transformers | batch 8"
    assert Trial(Variant(Recipe("")), Choice("baseline", "tfidf")).label == "tfidf"
    assert Trial(Variant(Recipe("")), Choice("baseline", "tfidf")).is_baseline
    assert not TRIAL.is_baseline


def test_equal_choices_are_one_key() -> None:
    assert {WANDA: 1}[Choice("prune", "wanda", {"sparsity": 0.5})] == 1
    assert len({WANDA, Choice("prune", "wanda"), Choice("quantize", "wanda", {"sparsity": 0.5})}) == 3


def test_a_date_in_a_setting_has_a_digest() -> None:
    """YAML reads 2026-01-31 as a date."""
    day, other = (Choice("tasks", "response", {"data": {"test_from": date(2026, 1, d)}}) for d in (30, 31))
    assert hash(day) != hash(other)
    assert len({day, other}) == 2


@given(JSON)
def test_equal_data_have_equal_digests_whatever_the_order_of_keys(data: object) -> None:
    def turned(value: object) -> object:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(each) for each in value] if isinstance(value, list) else value

    assert digest(data) == digest(turned(data))
    assert len(digest(data)) == 16


@given(JSON, JSON)
def test_different_data_have_different_digests(one: object, other: object) -> None:
    import json

    assert (digest(one) == digest(other)) == (json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True))


CHANGES = {
    "base": replace(TRIAL, variant=replace(TRIAL.variant, recipe=Recipe("other", (WANDA,)))),
    "revision": replace(TRIAL, variant=replace(TRIAL.variant, recipe=Recipe("starter", (WANDA,), "v1"))),
    "steps": replace(TRIAL, variant=replace(TRIAL.variant, recipe=Recipe("starter"))),
    "order": replace(TRIAL, variant=replace(TRIAL.variant, recipe=Recipe("starter", (WANDA, WANDA)))),
    "data": replace(TRIAL, variant=replace(TRIAL.variant, data="e")),
    "seed": replace(TRIAL, variant=replace(TRIAL.variant, seed=1)),
    "fold": replace(TRIAL, variant=replace(TRIAL.variant, fold=1)),
    "fidelity": replace(TRIAL, variant=replace(TRIAL.variant, fidelity=Fidelity(steps=3))),
    "engine": replace(TRIAL, engine=Choice("engine", "openvino")),
    "compute": replace(TRIAL, engine=Choice("engine", "transformers", {"compute": "bf16"})),
    "batch": replace(TRIAL, batch=1),
}


def test_every_part_of_a_trial_but_its_place_is_its_identity() -> None:
    assert len({TRIAL.id, *(trial.id for trial in CHANGES.values())}) == len(CHANGES) + 1
    assert replace(TRIAL, ordinal=7).id == TRIAL.id


def test_ids_do_not_depend_on_the_process() -> None:
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).id)"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=pickle.dumps(TRIAL),
            capture_output=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        )
        assert done.stdout.decode().strip() == TRIAL.id


def test_a_variant_is_made_once_for_all_engines_and_batches() -> None:
    for same in ("engine", "compute", "batch"):
        assert record_id("make", CHANGES[same]) == record_id("make", TRIAL)
        assert record_id("grade", CHANGES[same]) != record_id("grade", TRIAL)
    for other in CHANGES.keys() - {"engine", "compute", "batch"}:
        assert record_id("make", CHANGES[other]) != record_id("make", TRIAL)


def test_jobs_rounds_and_attempts_have_ids_of_their_own() -> None:
    ids = {
        record_id(job, TRIAL, round_, attempt) for job in ("grade", "weigh") for round_ in (0, 1) for attempt in (0, 1)
    }
    assert len(ids) == 8
    record = Record("weigh", TRIAL, "failed", round=1)
    assert record.id == record_id("weigh", TRIAL, 1)
    assert record.again(2).id == record_id("weigh", TRIAL, 1, 2)
    assert record.attempt == 0
