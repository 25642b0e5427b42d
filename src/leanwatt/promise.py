"""What the report promised a ticket to cost, what tickets really cost here, and whether the two have drifted apart."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from leanwatt.measurement import Energy
from leanwatt.ranking import Ranking
from leanwatt.recipe import Trial

DRIFT = 0.20
"""Further than this from the promise, the server says so."""
RECENT = 200
"""Tickets that are looked at."""
ENOUGH = 20
"""Fewer tickets than this say nothing."""


@dataclass(frozen=True)
class Promise:
    """The energy of one ticket through all tasks, as the study found it."""

    joules: float | None
    """None where the study could not tell."""
    lower: float | None
    upper: float | None
    provenance: str
    source: str
    scope: str
    machine: str | None
    batch: int

    @classmethod
    def of(cls, ranking: Ranking, trial: Trial) -> Promise:
        """From the table."""
        spent, scale = ranking.entry(trial.label).spending, ranking.scale
        joules = spent.joules.value if spent is not None and spent.joules is not None else None
        return cls(
            joules=joules,
            lower=spent.joules_lower if spent is not None else None,
            upper=spent.joules_upper if spent is not None else None,
            provenance=scale.provenance,
            source=scale.source,
            scope=scale.scope,
            machine=scale.machine,
            batch=trial.batch,
        )

    def data(self) -> dict[str, Any]:
        """As JSON; `Promise(**data)` reads it."""
        return asdict(self)


@dataclass(frozen=True)
class Standing:
    """Spent against promised."""

    status: Literal["kept", "drifts", "cannot tell"]
    why: str
    promised_joules: float | None
    spent_joules: float | None
    """Mean of the recent tickets whose energy is known."""
    ratio: float | None
    tickets: int
    """Recent tickets whose energy is known."""


@dataclass(frozen=True)
class Day:
    """What was answered since midnight UTC, or since the server began."""

    since: str
    answers: int
    joules: Mapping[str, float]
    """By provenance: figures of different kinds are not added up."""
    unknown: int
    """Answers whose energy is not known; they are in no sum."""


class Books:
    """Keeps count of what answers cost. Safe to use from several threads."""

    def __init__(self, promise: Promise, machine: str | None) -> None:
        self.promise = promise
        self._machine = machine
        self._lock = threading.Lock()
        self._tickets: deque[Energy] = deque(maxlen=RECENT)
        self._since = datetime.now(UTC)
        self._joules: Counter[str] = Counter()
        self._answers = self._unknown = 0

    def enter(self, energy: Energy, *, is_ticket: bool) -> None:
        """One more request was answered."""
        with self._lock:
            self._turn_page()
            self._answers += 1
            if energy.joules is None:
                self._unknown += 1
                return
            self._joules[str(energy.provenance)] += energy.joules  # type: ignore[assignment]  # Counters hold floats too.
            if is_ticket:
                self._tickets.append(energy)

    def day(self) -> Day:
        """So far."""
        with self._lock:
            self._turn_page()
            since = self._since.isoformat(timespec="seconds")
            return Day(since, self._answers, dict(self._joules), self._unknown)

    def _turn_page(self) -> None:
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if self._since < today:
            self._since, self._answers, self._unknown = today, 0, 0
            self._joules.clear()

    def standing(self) -> Standing:
        """Whether the promise is kept."""
        with self._lock:
            recent = list(self._tickets)
        joules = [energy.joules for energy in recent if energy.joules is not None]
        spent, promised = (sum(joules) / len(joules) if joules else None), self.promise.joules
        why = self._why_not(recent)
        if why or spent is None or not promised:
            return Standing("cannot tell", why, promised, spent, None, len(joules))
        ratio = spent / promised
        if abs(ratio - 1) <= DRIFT:
            return Standing("kept", "", promised, spent, ratio, len(joules))
        said = (
            f"a ticket costs {ratio:.2f} times what the report promised; the promise holds for full batches of "
            f"{self.promise.batch} on a machine that does nothing else"
        )
        return Standing("drifts", said, promised, spent, ratio, len(joules))

    def _why_not(self, recent: list[Energy]) -> str:
        """Why the two cannot be compared; empty where they can."""
        promise = self.promise
        if promise.joules is None:
            return "the study could not tell the joules of a ticket"
        if promise.machine != self._machine:
            return "the promise was made on another machine"
        if len(recent) < ENOUGH:
            return f"{len(recent)} tickets with known energy so far; {ENOUGH} are needed"
        kinds = {(energy.source, energy.scope) for energy in recent}
        if kinds != {(promise.source, promise.scope)}:
            measured = ", ".join(sorted(f"{source} ({scope})" for source, scope in kinds))
            return f"read from {measured} here, and from {promise.source} ({promise.scope}) in the study"
        return ""
