"""The plan: everything is checked before the first joule, and what is predicted is roughly so."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leanwatt import plan
from leanwatt.errors import DataError, ModelError, StudyError, UnknownNameError, UserError
from leanwatt.question import Example, Likelihood, Prompt, Score
from leanwatt.recipe import Choice
from leanwatt.record import Record
from leanwatt.store import Store
from leanwatt.study import Study

SPLIT = {"near_duplicate": None, "validation": 0.2, "test": 0.3}


@pytest.fixture
def given(saved: Callable[[str], Path], tickets: Path) -> Callable[..., Study]:
    """A study of 120 tickets and a tiny base."""
    data = {"path": str(tickets), **SPLIT}
    root_cause = {"root_cause": {"data": data, "text": "description", "label": "cause"}}
    response = {"response": {"data": data, "text": "description", "reference": "resolution", "limit": 12}}

    def make(**changes: Any) -> Study:
        whole: dict[str, Any] = {
            "name": "tickets",
            "base": str(saved("llama")),
            "tasks": [root_cause, response],
            "steps": [{"finetune": ["full"]}, {"quantize": ["none", {"round_to_nearest": {"bits": 8}}]}],
            "baselines": ["majority"],
        }
        return Study.parse({**whole, **changes})

    return make


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings must not depend on the machine that tests run on."""
    monkeypatch.setattr(plan, "usable_gpu", lambda: None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "out")


def test_a_plan_tells_what_would_run(given: Callable[..., Study], store: Store) -> None:
    found = plan.check(given(), store)
    assert (len(found.trials), found.done, found.folds) == (3, 0, 1)
    assert found.summaries["root_cause"].rows == 120
    assert sum(found.summaries["root_cause"].splits.values()) == 120
    assert found.hours > 0 and found.disk_bytes > 0 and found.memory_bytes > 700e6
    lines = "\n".join(found.lines())
    for words in (
        "3 variants and baselines, 3 trials, 0 done",
        "round_to_nearest(bits=8)",
        "majority",
        "Data of root_cause",
    ):
        assert words in lines
    assert re.search(r"Predicted, roughly: [1-9]\d* (s|min), ", lines), "short ones are not 0 minutes"
    assert {trial.variant.data for trial in found.trials} == {found.data}
    assert not list((store.folder / "records").iterdir())


def test_what_is_graded_counts_as_done(given: Callable[..., Study], store: Store) -> None:
    store.add(Record("grade", plan.check(given(), store).trials[0], "done"))
    assert plan.check(given(), store).done == 1


def test_the_digest_follows_content_and_not_the_place(given: Callable[..., Study], store: Store, tickets: Path) -> None:
    before = plan.check(given(), store).data
    moved = tickets.with_name("moved.csv")
    moved.write_text(tickets.read_text())

    def with_data(path: Path, **changes: Any) -> str:
        tasks = [
            {"root_cause": {"data": {"path": str(path), **SPLIT}, "text": "description", "label": "cause", **changes}},
            {
                "response": {
                    "data": {"path": str(path), **SPLIT},
                    "text": "description",
                    "reference": "resolution",
                    "limit": 12,
                }
            },
        ]
        return plan.check(given(tasks=tasks), store).data

    assert with_data(moved) == before
    assert with_data(moved, instruction="What broke?") != before
    moved.write_text(tickets.read_text().replace("alarm 7,", "alarm 8,", 1))
    assert with_data(moved) != before


def test_the_reference_must_be_there(given: Callable[..., Study], store: Store) -> None:
    with pytest.raises(StudyError, match=r"no trial is called 'best'. There are: .*full"):
        plan.check(given(reference="best"), store)
    label = plan.check(given(), store).trials[1].label
    assert plan.check(given(reference=label), store).study.reference == label
    with pytest.raises(StudyError, match="no trial is called 'majority'"):
        plan.check(given(reference="majority"), store)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"engine": "openvno"}, UnknownNameError, "Did you mean 'openvino'"),
        ({"engine": {"openvino": {"compute": "int3"}}}, StudyError, "openvino.compute"),
        ({"steps": [{"prune": [{"width": {"kep": 0.5}}]}]}, StudyError, "Did you mean 'keep'"),
        ({"steps": [{"prune": [{"width": {"keep": 1.5}}]}]}, StudyError, "prune.width.keep"),
        ({"baselines": ["majorty"]}, UnknownNameError, "Did you mean 'majority'"),
        ({"meter": "rapll"}, UnknownNameError, "Did you mean 'rapl'"),
        ({"search": "gird"}, UnknownNameError, "Did you mean 'grid'"),
        ({"base": "no/such-folder-anywhere"}, ModelError, "no model folder"),
        ({"also": [{"steps": [], "engine": "vllmm"}]}, UnknownNameError, "engine"),
    ],
)
def test_what_cannot_be_is_refused_first(
    changes: dict[str, Any], error: type[UserError], words: str, given: Callable[..., Study], store: Store
) -> None:
    with pytest.raises(error, match=words):
        plan.check(given(**changes), store)


QUANTIZED = {"quantize": ["none", {"round_to_nearest": {"bits": 8}}]}
PRUNED = {"prune": ["none", {"magnitude": {"sparsity": 0.5}}]}


def test_recipes_that_will_be_refused_are_named_first(given: Callable[..., Study], store: Store) -> None:
    found = plan.check(given(steps=[QUANTIZED, PRUNED]), store)
    [warning] = found.warnings
    assert "round_to_nearest(bits=8) > magnitude(sparsity=0.5) will be refused. prune magnitude" in warning
    assert "put prune before quantize" in warning
    assert f"Warning: {warning}" in found.lines()
    assert plan.check(given(steps=[PRUNED, QUANTIZED]), store).warnings == ()


def test_what_the_base_cannot_express_is_named_first(
    given: Callable[..., Study], store: Store, saved: Callable[[str], Path]
) -> None:
    bases = [str(saved("llama")), str(saved("gpt2"))]
    [warning] = plan.check(given(base=bases, steps=[{"prune": {"heads": {"keep": 0.5}}}]), store).warnings
    assert f"{bases[1]} > heads(keep=0.5) will be refused. prune heads: transformers cannot express a GPT-2" in warning


def test_who_insists_is_warned(given: Callable[..., Study], store: Store) -> None:
    steps = [QUANTIZED, {"merge": ["dense"]}, PRUNED]
    warnings = plan.check(given(steps=steps), store).warnings
    assert len(warnings) == 2
    assert all("merge dense gives up what quantize round_to_nearest left" in warning for warning in warnings)


def test_a_reference_that_cannot_be_made_is_refused(given: Callable[..., Study], store: Store) -> None:
    steps = [{"quantize": [{"round_to_nearest": {"bits": 8}}]}, {"prune": [{"magnitude": {"sparsity": 0.5}}, "none"]}]
    with pytest.raises(StudyError, match=r"The reference '.*magnitude.*' cannot be made.*put prune before quantize"):
        plan.check(given(steps=steps), store)
    label = next(trial.label for trial in given(steps=steps).trials("", 1)[1:])
    assert plan.check(given(steps=steps, reference=label), store).warnings


def test_adapters_that_the_engine_does_not_take_are_named_before_they_are_trained(
    given: Callable[..., Study], store: Store
) -> None:
    lora = [{"finetune": ["none", "lora"]}]
    [warning] = plan.check(given(steps=lora), store).warnings
    assert "> lora | openvino | batch 8 will be refused. Its adapters are not merged" in warning
    assert "put `merge: [merge]` after finetune" in warning
    assert plan.check(given(steps=[*lora, {"merge": ["merge"]}]), store).warnings == ()
    assert plan.check(given(steps=lora, engine="transformers"), store).warnings == ()
    with pytest.raises(StudyError, match=r"The reference '.*lora | openvino.*' cannot be run.*takes none"):
        plan.check(given(steps=[{"finetune": ["lora"]}]), store)


def test_a_gpu_that_would_stand_idle_is_told(
    given: Callable[..., Study], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "usable_gpu", lambda: "NVIDIA H200")
    [warning] = plan.check(given(), store).warnings
    assert "GPU (NVIDIA H200), and openvino computes on the CPU" in warning
    assert "`engine: transformers`" in warning
    assert plan.check(given(engine=["openvino", "transformers"]), store).warnings == ()


@pytest.mark.parametrize(
    ("gpus", "device", "found"), [(["A"], "cuda", "A"), (["A"], "cpu", None), ([], "cuda", None), ([], "cpu", None)]
)
def test_a_gpu_is_usable_where_torch_sees_it(
    gpus: list[str], device: str, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(plan, "describe", lambda: {"gpus": gpus})
    monkeypatch.setattr(plan, "accelerator", lambda: device)
    assert plan.usable_gpu() == found


def test_one_class_is_refused(given: Callable[..., Study], store: Store, tickets: Path) -> None:
    tickets.write_text(tickets.read_text().replace("fibre cut", "mains failure"))
    with pytest.raises(DataError, match="one value only"):
        plan.check(given(), store)


def test_too_little_memory_or_disk_is_refused(
    given: Callable[..., Study], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(plan, "available_memory_bytes", lambda: 100_000_000)
        with pytest.raises(StudyError, match=r"needs about 1\.2 GB of memory and 0\.1 GB are free"):
            plan.check(given(), store)
    with monkeypatch.context() as patch:
        patch.setattr(plan, "available_memory_bytes", lambda: None)
        assert plan.check(given(), store).trials
    monkeypatch.setattr(plan, "free_disk_bytes", lambda folder: 10)
    with pytest.raises(StudyError, match="of disk"):
        plan.check(given(), store)
    monkeypatch.undo()
    two = given(steps=[{"quantize": ["cast", {"round_to_nearest": {"bits": 4}}, {"round_to_nearest": {"bits": 8}}]}])
    whole = plan.check(two, store).disk_bytes
    monkeypatch.setattr(plan, "free_disk_bytes", lambda folder: int(0.8 * whole))
    with pytest.raises(StudyError, match="of disk"):
        plan.check(two, store)
    limited = plan.check(replace(two, cache_gb=0.7 * whole / 1e9), store)
    assert limited.disk_bytes == pytest.approx(0.7 * whole), "what the cache may have"
    assert plan.check(replace(two, cache_gb=1e-9), store).disk_bytes == pytest.approx(0.5 * whole), "base and one more"


def test_long_tickets_are_warned_of(given: Callable[..., Study], store: Store, tickets: Path) -> None:
    assert not [w for w in plan.check(given(), store).warnings if "context" in w]
    text = tickets.read_text().replace("site A0 ", "site A0 " + "and so on " * 100)
    tickets.write_text(text)
    [warning] = [w for w in plan.check(given(), store).warnings if "context" in w]
    assert "about 2 of 240 prompts may not fit the context of 256 tokens" in warning


def test_many_options_stand_beside_each_other_and_a_text_is_windowed() -> None:
    options = tuple(f"the option number {n}" for n in range(200))
    asked = Score(Prompt("Name it.", "one two three", "Name:"), options)
    assert plan._words_at_once(Example("a", "a", "train", asked, options[0])) == 9
    assert plan._words(Example("a", "a", "train", asked, options[0])) == 805
    assert plan._words_at_once(Example("b", "b", "train", Likelihood("word " * 5000), "")) == 0


def test_folds_must_agree(given: Callable[..., Study], store: Store, tickets: Path) -> None:
    tasks = [
        {"root_cause": {"data": {"path": str(tickets), "folds": 3}, "text": "description", "label": "cause"}},
        {"response": {"data": str(tickets), "text": "description", "reference": "resolution"}},
    ]
    with pytest.raises(StudyError, match="folds differ"):
        plan.check(given(tasks=tasks), store)
    found = plan.check(given(tasks=tasks[:1]), store)
    assert found.folds == 3
    assert len(found.trials) == 9


def test_more_work_is_predicted_to_take_longer(
    given: Callable[..., Study], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_operations_per_second", lambda: 1e9)
    hours = [
        plan.check(given(steps=[{"finetune": [{"full": {"epochs": epochs}}]}]), store).hours for epochs in (1, 1000)
    ]
    assert hours[1] > hours[0]
    assert plan.check(given(engine=["transformers", "openvino"]), store).hours > plan.check(given(), store).hours


def test_what_a_search_may_leave_out_is_said(given: Callable[..., Study], store: Store) -> None:
    assert plan.check(given(), store).lines()[-1].endswith("GB of disk.")
    searched = plan.check(given(search="two_phase"), store).lines()[-1]
    assert searched.endswith("Of all variants; the search two_phase tries fewer.")


def test_several_workers_are_said_to_take_less_time(given: Callable[..., Study], store: Store) -> None:
    pytest.importorskip("ray")
    assert plan.check(given(executor="ray"), store).lines()[-1].endswith("several workers take less time.")


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "qwen3"])
def test_parameters_are_roughly_counted(family: str) -> None:
    from conftest import tiny_module

    module = tiny_module(family)
    counted = sum(p.numel() for p in module.parameters())
    assert plan.parameters(module.config) == pytest.approx(counted, rel=0.5)


def test_the_speed_of_this_machine_is_plausible() -> None:
    assert 1e8 < plan._operations_per_second() < 1e14


def test_choices_of_the_plan_are_the_methods(given: Callable[..., Study]) -> None:
    assert Choice("finetune", "full") in given().choices()
