"""The study file: every word of it read, every mistake named with what was got and what is allowed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from leanwatt.errors import StudyError
from leanwatt.recipe import Choice, Fidelity, Recipe
from leanwatt.study import PROTOCOLS, Study

TASK = {"root_cause": {"data": "t.csv", "text": "a", "label": "b"}}
SMALL: dict[str, Any] = {"name": "tickets", "tasks": [TASK]}


def study(**changes: Any) -> Study:
    return Study.parse({**SMALL, **changes})


def test_what_is_left_out_has_a_default() -> None:
    small = study()
    assert small.recipes == (Recipe("starter"),)
    assert small.engines == (Choice("engine", "openvino"),)
    assert (small.batches, small.seeds, small.reference) == ((8,), (0,), "first")
    assert small.protocol == PROTOCOLS["ranked"]
    assert (small.meter.name, small.search.name, small.executor.name) == ("auto", "grid", "local")
    assert (small.weight, small.margin, small.budget, small.load) == (0.5, 0.02, {}, {})


def test_the_grid_is_every_combination_in_the_order_of_the_file() -> None:
    steps = [
        {"finetune": [{"full": {"epochs": 1}}, {"full": {"epochs": 2}}]},
        {"prune": ["none", {"width": {"keep": 0.5}}]},
        {"quantize": [None, {"round_to_nearest": {"bits": 8}}]},
    ]
    recipes = study(base=["a", "b"], steps=steps).recipes
    assert len(recipes) == 2 * 2 * 2 * 2
    assert [str(recipe) for recipe in recipes[:5]] == [
        "a > full(epochs=1)",
        "a > full(epochs=1) > round_to_nearest(bits=8)",
        "a > full(epochs=1) > width(keep=0.5)",
        "a > full(epochs=1) > width(keep=0.5) > round_to_nearest(bits=8)",
        "a > full(epochs=2)",
    ]


def test_steps_keep_their_order_and_a_room_may_come_twice() -> None:
    steps = [{"prune": ["depth"]}, {"finetune": ["full"]}, {"prune": ["magnitude"]}]
    [recipe] = study(steps=steps).recipes
    assert [step.name for step in recipe.steps] == ["depth", "full", "magnitude"]


def test_equal_recipes_stand_once() -> None:
    assert len(study(steps=[{"prune": ["none", "none"]}]).recipes) == 1


def test_the_space_is_recipes_by_engines_by_batches_by_seeds_by_folds_and_baselines() -> None:
    wide = study(
        steps=[{"prune": ["none", "depth"]}],
        engine=["transformers", "openvino"],
        batch=[1, 8],
        seeds=[0, 1],
        baselines=["majority", "tfidf"],
        also=[{"steps": [{"merge": "merge"}], "engine": "openvino"}],
        fidelity={"examples": 5},
    )
    trials = wide.trials("digest", folds=3)
    assert len(trials) == (2 * 2 * 2 + 2 + 2) * 2 * 3
    assert [trial.ordinal for trial in trials] == list(range(len(trials)))
    assert len({trial.id for trial in trials}) == len(trials)
    assert {trial.variant.data for trial in trials} == {"digest"}
    assert {trial.variant.fidelity for trial in trials} == {Fidelity(examples=5)}
    assert [trial.is_baseline for trial in trials][-12:] == [True] * 12
    first = trials[:6]
    assert {trial.label for trial in first} == {"starter | transformers | batch 1"}
    assert [(trial.variant.seed, trial.variant.fold) for trial in first] == [(s, f) for s in (0, 1) for f in range(3)]


def test_a_variant_beside_the_grid_that_is_in_the_grid_stands_once() -> None:
    assert len(study(also=[{"steps": []}]).trials("", 1)) == 1


def test_a_seed_that_stands_twice_is_one_seed() -> None:
    trials = study(seeds=[0, 0]).trials("", 1)
    assert len(trials) == len({trial.id for trial in trials}) == 1


def test_bases_with_a_revision() -> None:
    assert study(base={"org/model": "v1"}).recipes == (Recipe("org/model", (), "v1"),)


def test_every_method_that_is_named_is_told() -> None:
    named = study(
        steps=[{"prune": ["none", "depth"]}],
        also=[{"steps": [{"quantize": ["round_to_nearest"]}], "engine": "transformers"}],
        baselines=["majority"],
    ).choices()
    assert {f"{choice.room}/{choice.name}" for choice in named} == {
        *("prune/depth", "quantize/round_to_nearest", "tasks/root_cause", "baseline/majority", "engine/transformers"),
        *("engine/openvino", "meter/auto", "search/grid", "executor/local"),
    }


def test_settings_of_a_protocol_change_it() -> None:
    assert study(protocol={"quick": {"phases": True}}).protocol.phases is True
    assert study(protocol={"ranked": {"phases": False}}).protocol.phases is False
    quick = study(protocol={"quick": {"rounds": 1, "generations": 7, "examples": None}}).protocol
    assert (quick.name, quick.rounds, quick.generations, quick.examples) == ("quick", 1, 7, None)
    assert PROTOCOLS["quick"].rounds == 3


@pytest.mark.parametrize("written", ["tickets.csv", {"path": "tickets.csv", "test": 0.3}])
def test_data_beside_the_study_are_found_from_anywhere(written: Any, tmp_path: Path) -> None:
    (tmp_path / "tickets.csv").write_text("a\n")
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "tasks": [{"root_cause": {"data": written, "text": "a", "label": "b"}}]}))
    data = Study.read(file).tasks[0].settings["data"]
    assert (data if isinstance(data, str) else data["path"]) == str(tmp_path / "tickets.csv")
    if isinstance(written, dict):
        assert data["test"] == 0.3


def test_data_that_are_not_beside_the_study_keep_their_name(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    assert Study.read(file).tasks[0].settings["data"] == "t.csv"


WRONG = [
    ({"nmae": "x"}, "No 'nmae' in the keys of a study.*Did you mean 'name'"),
    ({"name": ""}, "name: got ''"),
    ({"name": "a/b"}, "name: got 'a/b'"),
    ({"name": ".."}, r"name: got '\.\.'"),
    ({"name": 5}, "name: got 5"),
    ({"base": 5}, "base: got 5"),
    ({"base": {"a": "1", "b": "2"}}, "base: got"),
    ({"tasks": []}, "tasks: is empty"),
    ({"tasks": [TASK, TASK]}, "root_cause stands twice"),
    ({"tasks": [5]}, "tasks: got 5"),
    ({"steps": ["prune"]}, "steps: got 'prune'"),
    ({"steps": [{"prnue": ["none"]}]}, "No 'prnue' in the rooms of steps.*Did you mean 'prune'"),
    ({"steps": [{"engine": ["openvino"]}]}, "No 'engine' in the rooms of steps"),
    ({"steps": [{"prune": [5]}]}, "prune: got 5"),
    ({"steps": [{"prune": [{"width": 0.5}]}]}, "prune.width: got 0.5"),
    ({"also": [{"step": []}]}, "also: got"),
    ({"also": ["full"]}, "also: got 'full'"),
    ({"batch": 0}, "batch: got 0; whole numbers from 1"),
    ({"batch": [1, 2.5]}, "batch: got 2.5"),
    ({"batch": True}, "batch: got True"),
    ({"seeds": [-1]}, "seeds: got -1; whole numbers from 0"),
    ({"seeds": ["a"]}, "seeds: got 'a'"),
    ({"protocol": "fast"}, "No 'fast' in the protocols"),
    ({"protocol": {"quick": {"round": 1}}}, "Did you mean 'rounds'"),
    ({"protocol": {"quick": {"rounds": 0}}}, "protocol.quick.rounds: got 0"),
    ({"protocol": {"quick": {"rounds": 2.5}}}, "protocol.quick.rounds: got 2.5"),
    ({"protocol": {"quick": {"rounds": None}}}, "protocol.quick.rounds: got None"),
    ({"protocol": {"quick": {"rounds": True}}}, "protocol.quick.rounds: got True"),
    ({"protocol": {"quick": {"window_seconds": None}}}, "protocol.quick.window_seconds: got None"),
    ({"protocol": {"quick": {"window_seconds": "1 s"}}}, "protocol.quick.window_seconds: got '1 s'"),
    ({"protocol": {"quick": {"phases": 1}}}, "protocol.quick.phases: got 1; true or false"),
    ({"protocol": {"quick": {"examples": 0.5}}}, "protocol.quick.examples: got 0.5"),
    ({"protocol": {"ranked": {"rounds": 3}}}, "got 3; a ranking needs at least 5"),
    ({"budget": 5}, "budget: got 5"),
    ({"budget": {"kwhs": 1}}, "No 'kwhs' in budget.*Did you mean 'kwh'"),
    ({"budget": {"hours": -1}}, "budget.hours: got -1"),
    ({"budget": {"hours": "6"}}, "budget.hours: got '6'"),
    ({"fidelity": {"steps": 0}}, "fidelity.steps: got 0"),
    ({"fidelity": {"steps": 1.5}}, "fidelity.steps: got 1.5"),
    ({"weight": 2}, "weight: got 2; a number from 0 to 1"),
    ({"weight": float("nan")}, "weight: got nan"),
    ({"margin": "0.02"}, "margin: got '0.02'"),
    ({"margin": True}, "margin: got True"),
    ({"load": {"tickets": 5}}, "No 'tickets' in load"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[str(change)[:60] for change, _ in WRONG])
def test_every_mistake_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        study(**change)


@pytest.mark.parametrize("whole", [None, [], "tickets", 5])
def test_a_study_is_a_mapping(whole: object) -> None:
    with pytest.raises(StudyError, match="A study is a mapping of keys"):
        Study.parse(whole)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(StudyError, match="lacks name, tasks"):
        Study.parse({})


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"name: [", "not valid YAML"), (b"\xff\xfe\x00x", "not valid YAML"), (b"", "A study is a mapping")],
)
def test_files_that_are_no_study(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_bytes(content)
    with pytest.raises(StudyError, match=message):
        Study.read(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot be read"):
        Study.read(tmp_path / "none.yaml")
    with pytest.raises(StudyError, match="cannot be read"):
        Study.read(tmp_path)


def test_yaml_dates_and_numbers_survive_to_the_data_settings(tmp_path: Path) -> None:
    """YAML reads 2026-01-31 as a date: the study must not choke on it before the task sees it."""
    from leanwatt import catalog

    file = tmp_path / "study.yaml"
    file.write_text(
        "name: x\ntasks:\n  - root_cause:\n      data: {path: t.csv, time: opened, test_from: 2026-01-31}\n"
        "      text: a\n      label: b\n"
    )
    read = Study.read(file)
    [task] = [choice for choice in read.choices() if choice.room == "tasks"]
    assert catalog.build(task).source.test_from == "2026-01-31"


def test_a_study_travels_to_other_processes() -> None:
    import pickle

    full = study(steps=[{"prune": ["none", {"width": {"keep": 0.5}}]}], baselines=["tfidf"])
    assert pickle.loads(pickle.dumps(full)) == full
