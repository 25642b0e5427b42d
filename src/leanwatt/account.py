"""What a study has spent: every job and attempt, failures included, charged to its budget and to what it found."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from leanwatt.bill import JOULES_PER_KWH, SECONDS_PER_HOUR
from leanwatt.evidence import Gathered, totals
from leanwatt.measurement import Measurement
from leanwatt.ranking import Searched, Sharing, SweetSpot
from leanwatt.record import Record
from leanwatt.spending import RANKABLE
from leanwatt.standing import Standing
from leanwatt.study import Study

WALL = "wall_seconds"
"""Fact of a record: how long the job took from outside, its process's start included; also of a worker that died."""
TRIED = ("make", "grade")
TUNING = ("finetune", "again/finetune")
"""Stages of fine-tuning: the second is of a model that the cache had let go."""


@dataclass(frozen=True)
class Account:
    """What is charged to a budget so far."""

    seconds: float
    """Of all jobs, one after the other, starts of processes included."""
    joules: float | None
    """None where no stage's energy is known."""
    watts: float | None
    """Mean over all stages whose energy is known."""
    tried: frozenset[str]
    """Trials, at any fidelity, failures included; of baselines too."""

    @property
    def trials(self) -> int:
        """How many were tried."""
        return len(self.tried)

    def charged(self) -> dict[str, float]:
        """By the keys of a study's `budget`; what is unknown is absent."""
        known = {"hours": self.seconds / SECONDS_PER_HOUR, "trials": float(self.trials)}
        return known if self.joules is None else {"kwh": self.joules / JOULES_PER_KWH, **known}


def account(records: Sequence[Record]) -> Account:
    """Add up all that was spent. Reused work was charged when it was done.

    Stages whose energy is unknown, and the time in which a worker died or a process started, are charged at the mean
    power of the stages that are known: better a little too much than a budget that failures do not touch.
    """
    stages = [part for record in records for part in record.spent]
    seconds = math.fsum(_wall_seconds(record) for record in records)
    known = [(joules, m.seconds) for m in stages if (joules := charged_joules(m)) is not None and m.seconds > 0]
    joules, measured = math.fsum(j for j, _ in known), math.fsum(s for _, s in known)
    watts = joules / measured if measured > 0 else None
    return Account(
        seconds=seconds,
        joules=None if watts is None else joules + watts * max(0.0, seconds - measured),
        watts=watts,
        tried=frozenset(record.trial.id for record in records if record.job in TRIED),
    )


def charged_joules(measurement: Measurement) -> float | None:
    """A measured figure counts as it is; of an estimate, or of a sensor that was lost, the upper bound counts."""
    energy = measurement.total
    if energy.joules is None or energy.provenance in RANKABLE:
        return energy.joules
    return energy.joules if energy.upper is None else energy.upper


def _wall_seconds(record: Record) -> float:
    spent = math.fsum(part.seconds for part in record.spent)
    wall = record.facts.get(WALL)
    return max(spent, float(wall)) if isinstance(wall, int | float) else spent


def searched(study: Study, gathered: Gathered, standing: Standing, spot: SweetSpot | None) -> Searched:
    """What finding the sweet spot took, and after how many tickets that is paid back."""
    records = gathered.records + gathered.glances
    chosen = next((entry for entry in standing.compared() if spot is not None and entry.label == spot.label), None)
    return Searched(
        method=str(study.search),
        tried=sum(line.status != "missing" for line in gathered.lines),
        glances=len({record.trial.id for record in gathered.glances if record.job in TRIED}),
        not_tried=gathered.not_tried,
        still_wanted=gathered.still_wanted,
        budget=dict(study.budget),
        charged=account(records).charged(),
        spent_on_glances=totals(gathered.glances),
        sharing=sharing(records),
        payback_tickets=standing.paid_back(totals(records), chosen) if chosen else None,
    )


def sharing(records: Iterable[Record]) -> Sharing:
    """Fine-tuning: what all attempts spent on it, and what variants would have spent more without a common cache."""
    ordered = sorted(records, key=lambda record: record.attempt)
    last = {record.trial.variant.id: record for record in ordered if record.job == "make"}
    stages = [each for record in ordered for each in _tunings(record)]
    own = {key for key, m in stages if not m.reused}  # An attempt that fails later leaves it for the next one.
    spent = [m for _, m in stages if not m.reused]
    saved = [m for record in last.values() for key, m in _tunings(record) if m.reused and key not in own]
    return Sharing(
        spent_cpu_seconds=math.fsum(m.cpu_seconds for m in spent),
        saved_cpu_seconds=math.fsum(m.cpu_seconds for m in saved),
        spent_joules=_known(spent),
        saved_joules=_known(saved),
    )


def _tunings(record: Record) -> list[tuple[tuple[str, int], Measurement]]:
    """The fine-tunings that a variant rests on, each with the variant and its place among them."""
    found = [m for m in record.measurements if m.stage in TUNING]
    return [((record.trial.variant.id, place), m) for place, m in enumerate(found)]


def _known(stages: Iterable[Measurement]) -> float | None:
    """None where a stage's energy is unknown."""
    joules = [m.total.joules for m in stages]
    return None if None in joules else math.fsum(each for each in joules if each is not None)
