"""How far a study has come, from its records alone: what is done, spent and found, and about how much is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from leanwatt import catalog
from leanwatt.account import WALL, Account, account
from leanwatt.budget import Forecast
from leanwatt.console import duration
from leanwatt.contracts import Search
from leanwatt.evidence import totals
from leanwatt.plan import Needs
from leanwatt.ranking import Making
from leanwatt.recipe import Trial
from leanwatt.record import Record
from leanwatt.study import Study

SHOWN = 5
BESIDE_SECONDS = 2.0
"""Jobs that are beside each other for less are one after the other: ends are known to a second, and are kept later."""

Stage = Literal["nothing yet", "making and grading", "weighing", "confirming", "done"]


@dataclass(frozen=True)
class Count:
    """Of one kind of job."""

    done: int
    wanted: int | None
    """None where it is not known beforehand."""


@dataclass(frozen=True)
class Graded:
    """What one variant reached on validation."""

    label: str
    quality: Mapping[str, float]
    """The primary metric, by task."""


@dataclass(frozen=True)
class Headway:
    """A study at one instant."""

    study: str
    stage: Stage
    counts: Mapping[str, Count]
    failed: int
    """Jobs whose last attempt failed or was refused."""
    spent: Making | None
    """By all jobs and attempts so far; None before the first."""
    best: tuple[Graded, ...]
    """Best mean quality first."""
    latest: str
    """The job that ended last."""
    left_seconds: float
    """Of what is known to be missing, with as many jobs at once as there were so far; foretold by the plan, corrected
    by what finished jobs took."""
    left_joules: float | None
    """In all of these jobs, at the mean power so far; None where it is unknown."""
    left_hours: float | None
    """Of the budget, charged as the run charges it; None where there is none."""
    left_kwh: float | None
    """Of the budget; None where there is none, or where the energy is unknown."""

    def data(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def line(self) -> str:
        """All of it in one line."""
        parts = [self.stage, *(f"{job} {_of(count)}" for job, count in self.counts.items())]
        parts += [f"{self.failed} failed or refused"] if self.failed else []
        parts += [f"{energy_words(self.spent)}, {self.spent.cpu_seconds:.0f} CPU-s spent"] if self.spent else []
        parts += [f"best {_quality_words(self.best[0])}"] if self.best else []
        return "; ".join([*parts, *self.left()])

    def left(self) -> list[str]:
        """Time and budget, as far as they are known."""
        joules = "" if self.left_joules is None else f" and {_joules(self.left_joules)}"
        found = [f"about {duration(self.left_seconds)}{joules} left"] if self.left_seconds else []
        found += [] if self.left_hours is None else [f"{self.left_hours:.2g} h of the budget left"]
        return found + ([] if self.left_kwh is None else [f"{self.left_kwh:.2g} kWh of the budget left"])


def headway(needs: Needs, primaries: Mapping[str, str], records: Sequence[Record]) -> Headway:
    """From the trials that were planned, what the search wants of them so far, and the records that are there."""
    study, tried = needs.study, _tried(needs, records)
    known = {trial.id for trial in tried} | {trial.variant.id for trial in tried}
    last: dict[str, Record] = {}
    ours = [r for r in records if (r.trial.variant.id if r.job == "make" else r.trial.id) in known]
    for record in sorted(ours, key=lambda record: record.attempt):
        last[f"{record.job} {_subject(record)} {record.round}"] = record
    ended = list(last.values())
    counts = _counts(study, tried, {trial.id for trial in needs.trials}, ended)
    spent, charged = totals(ours), account(ours)
    forecast, to_try = Forecast(needs, ours), _to_try(tried, ended)
    newest = max(ours, key=lambda record: str(record.machine.get("utc") or ""), default=None)
    return Headway(
        study=study.name,
        stage=_stage(counts),
        counts=counts,
        failed=sum(record.status != "done" for record in ended),
        spent=spent,
        best=_best(primaries, ended),
        latest=f"{newest.job} {newest.trial.label}: {newest.status}" if newest else "",
        left_seconds=forecast.seconds(to_try, at_once(ours)),
        left_joules=_at_mean_power(spent, forecast.seconds(to_try)),
        left_hours=_left(study, charged, "hours"),
        left_kwh=_left(study, charged, "kwh"),
    )


def _tried(needs: Needs, records: Sequence[Record]) -> list[Trial]:
    """What the search wants so far, of any fidelity; and what was graded without it."""
    search: Search = catalog.build(needs.study.search)
    graded = {record.trial.id for record in records if record.job == "grade"}
    wanted = search.wanted(needs.study.reference_first(needs.trials), records, [])
    return list({t.id: t for t in [*wanted, *(t for t in needs.trials if t.id in graded)]}.values())


def _subject(record: Record) -> str:
    return record.trial.variant.id if record.job == "make" else record.trial.id


def _counts(study: Study, trials: Sequence[Trial], space: Set[str], last: Sequence[Record]) -> dict[str, Count]:
    """A trial whose variant could not be made has no further jobs; one that was not graded is not weighed.

    Nor is one outside the study's `space`, which only a search asked for.
    """
    ended = {job: [record for record in last if record.job == job] for job in ("make", "grade", "weigh", "confirm")}
    gradable = _gradable(trials, last)
    ungraded = {record.trial.id for record in ended["grade"] if record.status != "done"}
    labels = {trial.label for trial in gradable if trial.id in space - ungraded}
    wanted = {
        "make": len({trial.variant.id for trial in trials if not trial.is_baseline}),
        "grade": len(gradable),
        "weigh": len(labels) * study.protocol.rounds,
        "confirm": None,
    }
    return {job: Count(len(ended[job]), number) for job, number in wanted.items()}


def _gradable(trials: Sequence[Trial], last: Sequence[Record]) -> list[Trial]:
    """Those whose variant is made, or still to be made."""
    unmade = {record.trial.variant.id for record in last if record.job == "make" and record.status != "done"}
    return [trial for trial in trials if trial.is_baseline or trial.variant.id not in unmade]


def _to_try(trials: Sequence[Trial], last: Sequence[Record]) -> list[Trial]:
    graded = {record.trial.id for record in last if record.job == "grade"}
    return [trial for trial in _gradable(trials, last) if trial.id not in graded]


def _stage(counts: Mapping[str, Count]) -> Stage:
    if not any(count.done for count in counts.values()):
        return "nothing yet"
    if _missing(counts["grade"]):
        return "making and grading"
    return "weighing" if _missing(counts["weigh"]) else "confirming"


def _missing(count: Count) -> int:
    return max(0, (count.wanted or 0) - count.done)


def _best(primaries: Mapping[str, str], last: Sequence[Record]) -> tuple[Graded, ...]:
    """Those that do every task, by the mean of their metrics; seeds and folds each for themselves."""
    found = []
    for record in last:
        values = {task: record.metrics.get(task, {}).get(metric) for task, metric in primaries.items()}
        quality = {task: value for task, value in values.items() if value is not None}
        if record.job == "grade" and len(quality) == len(primaries):
            found.append(Graded(record.trial.label, quality))
    return tuple(sorted(found, key=lambda graded: -sum(graded.quality.values()))[:SHOWN])


def at_once(records: Sequence[Record]) -> float:
    """How many jobs were made or graded at a time, on average while any was; 1 where nothing tells."""
    spans = sorted(span for r in records if r.job in ("make", "grade") and (span := _span(r)))
    busy = covered = 0.0
    until = float("-inf")
    for begin, end in spans:
        busy += end - begin
        covered += max(0.0, end - max(begin, until))
        until = max(until, end)
    return busy / covered if covered else 1.0


def _span(record: Record) -> tuple[float, float] | None:
    """From when to when a job ran, less what may be the inaccuracy of both; None where that is not known."""
    wall, utc = record.facts.get(WALL), record.machine.get("utc")
    if not isinstance(wall, int | float) or not isinstance(utc, str) or wall <= BESIDE_SECONDS:
        return None
    end = datetime.fromisoformat(utc).timestamp()
    return end - wall + BESIDE_SECONDS, end


def _left(study: Study, charged: Account, key: str) -> float | None:
    """Of one limit of the budget; None where there is none, or where nobody knows what was spent."""
    known = charged.charged() if charged.seconds else {"kwh": 0.0, "hours": 0.0}
    return study.budget[key] - known[key] if key in study.budget and key in known else None


def _at_mean_power(spent: Making | None, seconds: float) -> float | None:
    measured = 0.0 if spent is None else spent.seconds - spent.unknown_seconds
    if spent is None or spent.joules is None or measured <= 0:
        return None
    return spent.joules / measured * seconds


def energy_words(spent: Making) -> str:
    """Joules with where they come from, and for how long they are unknown."""
    if spent.joules is None:
        return "energy unknown"
    without = f", unknown for {duration(spent.unknown_seconds)}" if spent.unknown_seconds else ""
    return f"{_joules(spent.joules)} ({spent.provenance}{without})"


def _joules(joules: float) -> str:
    size, unit = (1e3, "kJ") if joules >= 1e3 else (1.0, "J")
    return f"{joules / size:.3g} {unit}"


def _quality_words(graded: Graded) -> str:
    return ", ".join(f"{task} {value:.3f}" for task, value in graded.quality.items())


def _of(count: Count) -> str:
    return str(count.done) if count.wanted is None else f"{count.done} of {count.wanted}"
