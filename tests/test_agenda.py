"""Several jobs at once: the same records as one after the other, no stage made twice, lost workers replaced once."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from test_pipeline import flow_of, study_of

from leanwatt.contracts import WorkerDied
from leanwatt.jobs import LOST, Turn
from leanwatt.pipeline import Flow
from leanwatt.recipe import Choice


@dataclass
class Juggler:
    """An executor that begins several jobs, and ends them in any order."""

    places: int
    loses: Callable[[Turn], bool] = lambda turn: False
    seed: int = 0
    together: list[list[Turn]] = field(default_factory=list)
    """What was running at the end of each job."""

    def run(self, job: Any, items: Iterable[Any], *, alone: bool = False) -> Iterator[Any]:
        source, running, dice = iter(items), [], random.Random(self.seed)
        while True:
            while len(running) < (1 if alone else self.places) and isinstance(item := next(source, None), Turn | tuple):
                running.append(item)
            if not running:
                return
            self.together.append([each for each in running if isinstance(each, Turn)])
            item = running.pop(dice.randrange(len(running)))
            if isinstance(item, Turn) and self.loses(item):
                yield WorkerDied(item, "its node was lost", True, {})
            else:
                yield job(item)


def with_executor(flow: Flow, juggler: Juggler) -> Flow:
    flow.__dict__["_executor"] = juggler
    return flow


@pytest.fixture
def four(saved: Callable[[str], Path], tickets: Path) -> dict[str, Any]:
    """Two fine-tunings, each with two variants, and a baseline."""
    tuned = [{"full": {"epochs": 1, "learning_rate": rate}} for rate in (0.001, 0.003)]
    steps = [{"finetune": tuned}, {"quantize": ["none", {"round_to_nearest": {"bits": 8, "group": 16}}]}]
    study = study_of(saved("llama"), tickets, engine="transformers", steps=steps, baselines=["majority"])
    return study | {"tasks": study["tasks"][:1]}


def facts(flow: Flow) -> dict[str, Any]:
    return {r.id: (r.job, r.status, r.metrics, r.artifact) for r in flow.store.records()}


@pytest.mark.parametrize("places", [2, 4])
def test_several_at_once_end_with_the_records_of_one_after_the_other(
    four: dict[str, Any], tmp_path: Path, places: int
) -> None:
    one, several = flow_of(four, tmp_path / "one"), flow_of(four, tmp_path / "several")
    one.try_all()
    juggler = Juggler(places, seed=places)
    with_executor(several, juggler).try_all()
    assert facts(several) == facts(one)
    assert max(len(turns) for turns in juggler.together) == places
    tuned = [m for r in several.store.records() for m in r.measurements if m.stage == "finetune" and not m.reused]
    assert len(tuned) == 2, "what variants share is made once, by one of them, while the other waits"
    for turns in juggler.together:
        shared = [turn.trial.variant.recipe.steps[0] for turn in turns if turn.attempt.job == "make"]
        made = {r.trial.variant.recipe.steps[0] for r in several.store.records() if r.job == "make"}
        fresh = [step for step in shared if step not in made]
        assert len(fresh) == len(set(fresh))


def test_the_search_knows_what_runs(four: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leanwatt.search.grid import Grid

    seen: list[int] = []

    def wanted(_self: Grid, space: Any, _records: Any, running: Any) -> Any:
        seen.append(len(running))
        return space

    monkeypatch.setattr(Grid, "wanted", wanted)
    with_executor(flow_of(four, tmp_path), Juggler(3)).try_all()
    assert max(seen) >= 2


def test_a_lost_worker_is_replaced_once_and_both_attempts_are_kept(four: dict[str, Any], tmp_path: Path) -> None:
    def first_make(turn: Turn) -> bool:
        return turn.attempt.job == "make" and turn.attempt.attempt == 0 and turn.trial.ordinal == 0

    flow = with_executor(flow_of(four, tmp_path), Juggler(2, first_make))
    flow.try_all()
    makes = [r for r in flow.store.records() if r.job == "make" and r.trial.variant.id == flow.space[0].variant.id]
    assert sorted((r.attempt, r.status, r.facts.get(LOST)) for r in makes) == [(0, "failed", True), (1, "done", None)]
    assert [r.machine for r in makes if r.status == "failed"] == [{}]
    assert len([r for r in flow.store.records() if r.job == "grade" and r.status == "done"]) == 5


def test_who_loses_workers_again_and_again_has_failed_over_restarts_too(four: dict[str, Any], tmp_path: Path) -> None:
    lost: list[Turn] = []

    def always(turn: Turn) -> bool:
        is_lost = turn.attempt.job == "make" and turn.trial.ordinal == 0
        lost.extend([turn] if is_lost else [])
        return is_lost

    flow = with_executor(flow_of(four, tmp_path), Juggler(2, always))
    flow.try_all()
    assert [turn.attempt.attempt for turn in lost] == [0, 1]
    again = with_executor(flow_of(four, tmp_path), Juggler(2, always))
    again.try_all()
    assert len(lost) == 2, "a restart gives no third attempt"
    asked = with_executor(replace(flow_of(four, tmp_path), retry=True), Juggler(2, always))
    asked.try_all()
    assert len(lost) == 3, "the user does, and only one"


def test_a_restart_replaces_what_was_lost_before_it(four: dict[str, Any], tmp_path: Path) -> None:
    flow = flow_of(four, tmp_path)
    with_executor(flow, Juggler(1, lambda turn: turn.attempt.attempt == 0))
    turn = flow._agenda.turn("make", flow.space[0])
    flow._carry_out(iter([turn]))
    assert [record.facts.get(LOST) for record in flow.store.records()] == [True]
    assert flow._settled() == [], "a search concludes nothing from it yet"
    resumed = flow_of(four, tmp_path)
    resumed.try_out(flow.space[0])
    assert [r.status for r in resumed.store.records() if r.job == "grade"] == ["done"]


def test_rounds_and_confirmations_replace_lost_workers_too(four: dict[str, Any], tmp_path: Path) -> None:
    flow = flow_of(four | {"steps": []}, tmp_path)
    flow.try_all()
    juggler = Juggler(2, lambda turn: turn.attempt.attempt == 0 and turn.trial.is_baseline)
    with_executor(flow, juggler)
    flow._do("confirm", flow.space)
    confirms = sorted((r.trial.label, r.attempt, r.status) for r in flow.store.records() if r.job == "confirm")
    assert [each for each in confirms if each[0] == "majority"] == [("majority", 0, "failed"), ("majority", 1, "done")]
    assert max(len(turns) for turns in juggler.together) == 2


def test_the_idle_machine_is_watched_where_it_is_weighed(four: dict[str, Any], tmp_path: Path) -> None:
    from leanwatt.idle import Idle, watch

    flow = flow_of(four, tmp_path)
    asked: list[Any] = []

    class Far:
        def run(self, job: Any, items: Any, *, alone: bool = False) -> Iterator[Any]:
            asked.append((job, alone, list(items)))
            yield Idle({"package-0": 3.0}, True)

    flow.__dict__["_executor"] = Far()
    assert flow._idle().watts == {"package-0": 3.0}
    assert asked == [(watch, True, [(Choice("meter", "auto"), 10.0)])]
    flow.__dict__["_executor"] = Juggler(1)
    flow.__dict__["_executor"].run = lambda *_, **__: iter([WorkerDied("item", "gone")])
    assert flow._idle() == Idle({}, None)
