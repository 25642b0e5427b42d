"""How far a study is, and watching it: from invented records whose truth is known."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from invented import PRIMARIES, Truth, World, world
from rich.console import Console

from leanwatt import catalog, watch
from leanwatt.account import WALL
from leanwatt.console import duration
from leanwatt.headway import Count, Headway, at_once, headway
from leanwatt.measurement import Measurement, Provenance
from leanwatt.record import Record
from leanwatt.store import Store

WEIGHING = 25 * (1 + 2 * (10 + 3))
"""Seconds: five trials in five rounds; a start, and the window and warm-up of two tasks."""
CONFIRMING = 2 + 1
"""The reference, one candidate and a baseline."""


def with_metrics(records: list[Record]) -> list[Record]:
    """Grades have their primary metrics, as jobs write them."""
    metrics = {"root_cause": {"macro_f1": 0.8}, "response": {"rouge_l": 0.6}}
    return [replace(record, metrics=metrics) if record.job == "grade" else record for record in records]


def at(here: World, *jobs: str, confirmed: tuple[str, ...] = ()) -> Headway:
    records = [record for record in with_metrics(here.records(confirmed)) if record.job in jobs]
    return headway(here.needs(), PRIMARIES, records)


def test_before_the_first_record_nothing_is_known() -> None:
    found = at(world())
    assert found.stage == "nothing yet"
    assert found.spent is None
    assert found.left_seconds == 4 + 5 + WEIGHING + CONFIRMING, "a second to make each model, one to grade each trial"
    assert found.left_joules is None
    assert found.left_kwh is None
    assert found.counts["make"] == Count(0, 4)
    assert found.line().startswith("nothing yet; make 0 of 4; grade 0 of 5")


def test_each_stage_is_told_with_what_is_left() -> None:
    here = world()
    making = at(here, "make")
    assert making.stage == "making and grading"
    assert making.left_seconds == 5 + WEIGHING + CONFIRMING
    graded = at(here, "make", "grade")
    assert graded.stage == "weighing"
    assert graded.counts["weigh"] == Count(0, 25)
    assert graded.left_seconds == WEIGHING + CONFIRMING
    assert graded.spent is not None
    power = (graded.spent.joules or 0.0) / graded.spent.seconds
    assert graded.left_joules == pytest.approx(power * graded.left_seconds)
    assert f"about 11 min and {graded.left_joules / 1e3:.3g} kJ left" in graded.line()
    weighed = at(here, "make", "grade", "weigh")
    assert weighed.stage == "confirming"
    assert weighed.left_seconds == CONFIRMING
    everything = at(here, "make", "grade", "weigh", "confirm", confirmed=(here.label("plain"),))
    assert everything.left_seconds == 0
    assert "left" not in everything.line()
    assert everything.counts["confirm"].done == 1


def with_spans(records: list[Record], *spans: tuple[int, int]) -> list[Record]:
    """The first of them ran from when to when, in seconds of one minute."""
    machines = [{"utc": f"2026-01-01T00:00:{end:02}+00:00"} for _, end in spans]
    return [
        *(
            replace(record, facts={WALL: float(end - begin)}, machine=machine)
            for record, machine, (begin, end) in zip(records, machines, spans, strict=False)
        ),
        *records[len(spans) :],
    ]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], 1.0),
        ([(0, 10), (10, 20), (20, 30)], 1.0),
        ([(0, 10), (9, 19), (18, 28)], 1.0),  # Ends are known to a second only.
        ([(0, 12), (0, 12), (0, 12)], 3.0),
        ([(0, 12), (0, 12), (50, 52)], 2.0),  # A pause between two runs counts nothing, nor does what is too short.
        ([(0, 22), (10, 22)], 1.5),
    ],
)
def test_how_many_run_at_once_is_told_by_when_they_ran(spans: list[tuple[int, int]], expected: float) -> None:
    makes = [record for record in world().records() if record.job == "make"]
    assert at_once(with_spans(makes, *spans)) == pytest.approx(expected)


def test_several_workers_need_less_of_the_clock_and_no_fewer_joules() -> None:
    here = world()
    makes = [record for record in with_metrics(here.records()) if record.job == "make"]
    after, beside = (
        headway(here.needs(), PRIMARIES, with_spans(makes, *spans))
        for spans in (((0, 12), (12, 24)), ((0, 12), (0, 12)))
    )
    assert after.left_seconds - beside.left_seconds == pytest.approx((5 + CONFIRMING) / 2)
    assert beside.left_seconds > WEIGHING, "weighings are alone"
    assert after.left_joules == pytest.approx(beside.left_joules)


def test_spent_is_what_the_records_say_and_budgets_shrink() -> None:
    here = world()
    here.settings["budget"] = {"kwh": 1.0, "hours": 2.0}
    found = at(here, "make", "grade")
    records = [r for r in here.records() if r.job in ("make", "grade")]
    joules = sum(m.total.joules or 0 for r in records for m in r.measurements if not m.reused)
    assert found.spent is not None
    assert found.spent.joules == pytest.approx(joules)
    assert found.left_kwh == pytest.approx(1 - joules / 3.6e6)
    assert found.left_hours == pytest.approx(2 - found.spent.seconds / 3600)
    assert "kWh of the budget left" in found.line()
    assert "kJ (measured)" in found.line()


def test_a_budget_of_unknown_energy_is_unknown() -> None:
    here = world()
    here.settings["budget"] = {"kwh": 1.0}
    here.provenance = Provenance.ABSENT
    found = at(here, "make", "grade")
    assert found.left_kwh is None
    assert "energy unknown" in found.line()


def test_the_best_come_first_and_must_do_every_task() -> None:
    here = world()
    records = with_metrics(here.records())
    label = here.label("wanda")
    records = [
        replace(r, metrics={**r.metrics, "response": {"rouge_l": 0.99}}) if r.trial.label == label else r
        for r in records
        if r.job == "grade"
    ]
    tfidf = next(r for r in records if r.trial.engine.name == "tfidf")
    records[records.index(tfidf)] = replace(tfidf, metrics={"root_cause": {"macro_f1": 1.0}})
    found = headway(here.needs(), PRIMARIES, records)
    assert found.best[0].label == label
    assert "tfidf" not in {graded.label for graded in found.best}


def test_failed_makes_end_their_trials() -> None:
    here = world(wanda=Truth(status="failed"))
    found = at(here, "make", "grade", "weigh")
    assert found.failed == 1
    assert found.counts["grade"] == Count(4, 4)
    assert found.counts["weigh"] == Count(20, 20)
    assert found.stage == "confirming"
    assert "1 failed or refused" in found.line()


def test_only_the_last_attempt_counts() -> None:
    here = world()
    [first, *rest] = [record for record in here.records() if record.job == "make"]
    failed = replace(first, status="failed")
    found = headway(here.needs(), PRIMARIES, [failed, first.again(1), *rest])
    assert found.failed == 0
    assert found.counts["make"] == Count(4, 4)


def test_records_of_something_else_are_not_counted() -> None:
    here, other = world(), world()
    other.settings["seeds"] = [7]
    found = headway(here.needs(), PRIMARIES, other.records())
    assert found.stage == "nothing yet"


def test_only_what_the_search_wants_is_counted() -> None:
    here = world()
    here.settings["search"] = "two_phase"
    answering = tuple(Measurement(f"grade/{task}", 1.0, 1.0, {}, answers=10) for task in PRIMARIES)
    done = [r for r in with_metrics(here.records()) if r.job in ("make", "grade")]
    records = [replace(r, measurements=answering) if r.job == "grade" else r for r in done]
    unpruned = [r for r in records if r.trial.is_baseline or "wanda" not in r.trial.label]
    begun = headway(here.needs(), PRIMARIES, unpruned[:1])
    assert begun.counts["make"] == Count(1, 2), "nothing is pruned before all else is graded"
    assert begun.counts["grade"] == Count(0, 3)
    second = headway(here.needs(), PRIMARIES, unpruned)
    assert second.counts["make"] == Count(2, 3), "one of two prunings follows: that of the best"
    assert second.counts["weigh"] == Count(0, 4 * 5)
    everything = headway(here.needs(), PRIMARIES, records)
    assert everything.counts["grade"] == Count(5, 5), "what was graded by an earlier search counts too"


def test_what_only_a_search_asks_for_is_spent_and_never_weighed() -> None:
    here = world()
    here.settings["search"] = {"halving": {"examples": 10}}
    found = headway(here.needs(), PRIMARIES, [])
    rungs = [t for t in catalog.build(here.study.search).wanted(here.study.reference_first(here.trials()), [], [])]
    assert {t.id for t in rungs} - {t.id for t in here.trials()}, "cheap trials of less fidelity"
    assert found.counts["grade"] == Count(0, len(rungs))
    assert found.counts["weigh"] == Count(0, 2 * 5), "the reference and the baseline, so far"


@pytest.mark.parametrize(("seconds", "words"), [(5, "5 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations_are_short(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_done_is_when_the_report_is_newer_than_all(tmp_path: Path) -> None:
    here, store = world(), Store(tmp_path)
    for record in here.records():
        store.add(replace(record, predictions=None))
    found = headway(here.needs(), PRIMARIES, store.records())
    assert watch.ended(found, store).stage == "confirming"
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").touch()
    assert watch.ended(found, store).stage == "done"
    assert watch.ended(at(here, "make"), store).stage == "making and grading"


def shown(found: Headway) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(watch.table(found))
    console.file.close()
    return console.export_text()


def test_the_terminal_shows_it_all() -> None:
    here = world()
    here.settings["budget"] = {"hours": 9}
    text = shown(at(here, "make", "grade"))
    for words in ("invented: weighing", "5 of 5", "energy so far", "root_cause 0.800", "about", "h of the budget left"):
        assert words in text
    assert "plain" not in text
    assert here.label("plain") in text, "brackets in a name are no markup"


def test_it_is_followed_until_it_is_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    here = world()
    stages = [at(here, "make"), at(here, "make", "grade"), replace(at(here, "make"), stage="done")]
    monkeypatch.setattr(watch, "EVERY_SECONDS", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    seen: Iterator[Headway] = iter(stages)
    watch.follow(lambda: next(seen))
    assert next(seen, None) is None
    monkeypatch.delenv("FORCE_COLOR")
    watch.follow(lambda: stages[0], once=True)
    assert "invented: making and grading" in capsys.readouterr().out


@pytest.fixture
def page() -> Iterator[Callable[[Headway], watch.Page]]:
    opened: list[watch.Page] = []

    def make(found: Headway) -> watch.Page:
        opened.append(watch.Page(lambda: found))
        threading.Thread(target=opened[-1].serve, daemon=True).start()
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def got(url: str, **headers: str) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as reply:
        return reply.read(), reply.headers


def test_the_page_tells_the_same(page: Callable[[Headway], watch.Page]) -> None:
    found = at(world(), "make", "grade")
    here = page(found)
    state, _ = got(f"{here.url}state")
    assert json.loads(state) == json.loads(json.dumps(found.data()))
    for path in ("", "watch.js", "desk.css"):
        body, headers = got(here.url + path)
        assert b"innerHTML" not in body
        assert "default-src 'none'" in headers["content-security-policy"]
    for url, host, status in ((f"{here.url}nothing", "localhost:1", 404), (f"{here.url}state", "evil.example:80", 403)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            got(url, host=host)
        assert refused.value.code == status
        refused.value.close()
