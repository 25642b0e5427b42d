"""Spent against promised: said only where the two can be compared, and days that begin anew."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from invented import world
from offered import PROMISE

from leanwatt.measurement import Energy, Provenance
from leanwatt.promise import ENOUGH, RECENT, Books, Promise


def energy(joules: float | None, **changes: object) -> Energy:
    if joules is None:
        return Energy(None)
    found = Energy(joules, joules / 2, joules * 2, Provenance.ESTIMATED, source="estimate", scope="package")
    return replace(found, **changes)  # type: ignore[arg-type]


def books(*joules: float | None, machine: str | None = "m1", promise: Promise = PROMISE) -> Books:
    found = Books(promise, machine)
    for each in joules:
        found.enter(energy(each), is_ticket=True)
    return found


@pytest.mark.parametrize(("factor", "status"), [(1.0, "kept"), (1.19, "kept"), (1.21, "drifts"), (0.79, "drifts")])
def test_more_than_a_fifth_is_drift(factor: float, status: str) -> None:
    standing = books(*[2.0 * factor] * ENOUGH).standing()
    assert standing.status == status
    assert standing.ratio == pytest.approx(factor)
    assert standing.spent_joules == pytest.approx(2.0 * factor)
    assert ("full batches of 4" in standing.why) == (status == "drifts")


def test_only_recent_tickets_count() -> None:
    assert books(*[9.0] * 50, *[2.0] * RECENT).standing().status == "kept"


def test_what_cannot_be_compared_is_said() -> None:
    assert "19 tickets" in books(*[2.0] * 19, *[None] * 30).standing().why
    assert "another machine" in books(*[2.0] * ENOUGH, machine="m2").standing().why
    assert "could not tell" in books(*[2.0] * ENOUGH, promise=replace(PROMISE, joules=None)).standing().why
    mixed = books(*[2.0] * ENOUGH)
    mixed.enter(energy(2.0, source="rapl"), is_ticket=True)
    standing = mixed.standing()
    assert standing.status == "cannot tell"
    assert standing.ratio is None
    assert "rapl (package)" in standing.why


def test_other_requests_are_of_the_day_and_not_of_the_promise() -> None:
    found = books(2.0, None)
    found.enter(energy(5.0, provenance=Provenance.ATTRIBUTED), is_ticket=False)
    day = found.day()
    assert day.answers == 3
    assert day.unknown == 1
    assert day.joules == {"estimated": 2.0, "attributed": 5.0}, "kinds are not added up"
    assert found.standing().tickets == 1


def test_a_new_day_begins_at_zero() -> None:
    found = books(2.0)
    found._since = datetime.now(UTC) - timedelta(days=1)
    assert found.day().answers == 0
    assert found.day().joules == {}
    assert found.day().since.endswith("T00:00:00+00:00")


def test_the_promise_is_that_of_the_table() -> None:
    here = world()
    ranking, trials = here.ranking(), here.trials()
    trial = next(trial for trial in trials if here.name(trial) == "gptq")
    promise = Promise.of(ranking, trial)
    spending = ranking.entry(trial.label).spending
    assert spending is not None
    assert spending.joules is not None
    assert promise.joules == spending.joules.value
    assert (promise.source, promise.scope, promise.machine) == ("rapl", "package", "m1")
    assert Promise(**promise.data()) == promise
    here.provenance = Provenance.ABSENT
    assert Promise.of(here.ranking(), trial).joules is None
