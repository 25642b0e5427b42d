"""Running totals that survive bad sensors: what a counter or a power sensor showed, and how far it can be believed."""

import time
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from leanwatt.measurement import Counter, Provenance, Scope

STUCK_SECONDS: Final = 2.0
"""A powered device never draws 0 W: a fine counter that stands still for longer is broken."""
LONGEST_SILENCE_SECONDS: Final = 1.0
"""A sensor that could not be read for longer may have been replaced: what it shows next is a lower bound."""


@dataclass(frozen=True)
class Device:
    """What one sensor is, and within which limits it is believed."""

    name: str
    """`package-0`, `gpu-0`, `node`."""
    source: str
    scope: Scope
    most_watts: float
    """No such device draws more: tells a wrapped counter from a reset one, and bounds what was not seen."""
    joules_per_step: float = 1e-6
    """Of an energy counter."""
    range_steps: int | None = None
    """Where an energy counter starts again; None where it never does, or where that is unknown."""
    accuracy: float = 0.05
    """Share by which the sensor itself may be wrong (docs/energy.md: a default of its class, not a calibration)."""
    period_seconds: float | None = None
    """How often the sensor changes its value."""
    slack_joules: float = 1.0
    """An energy counter may show so much at once, whatever the time: its coarsest step."""
    stuck_seconds: float = STUCK_SECONDS
    longest_gap_seconds: float = 2.0
    """Power samples further apart are not joined by a line."""


def median_gap(times: Sequence[float]) -> float | None:
    """The usual time between changes of a sensor; None for fewer than two changes."""
    gaps = sorted(after - before for before, after in pairwise(times))
    return gaps[len(gaps) // 2] if gaps else None


def observed_period(read: Callable[[], float | None], within: float, changes: int, pause: float) -> float | None:
    """How often what a sensor shows changes, as seen now: the median of a few; None where it stood still."""
    end, times, last = time.perf_counter() + within, list[float](), read()
    while len(times) <= changes and (now := time.perf_counter()) < end:
        if (value := read()) != last:
            times.append(now)
            last = value
        time.sleep(pause)
    return median_gap(times)


@dataclass
class CounterTotal:
    """An energy counter. Told each value as it is read, it never goes back and never guesses without a flag."""

    device: Device
    _flags: Tally[str] = field(default_factory=Tally)
    _raw: int | None = None
    _at: float = 0.0
    _changed_at: float = 0.0
    _failed_at: float | None = None
    _steps: int = 0
    _seen_seconds: float = 0.0
    _unseen_joules: float = 0.0

    def add(self, now: float, raw: int | None, *, stopped: bool = False) -> None:
        """The counter shows `raw` at `now` (monotonic seconds); None where it could not be read.

        `stopped` says that this process did not run in between: the figure then holds more than our work.
        """
        if raw is None:
            self._flags["read_failed"] += 1
            self._failed_at = now
            return
        if self._raw is None:
            self._raw, self._at, self._changed_at = raw, now, now
            return
        steps = self._steps_to(raw, now)
        self._account(now, steps, stopped=stopped)
        if steps != 0:
            self._changed_at = now
        self._raw, self._at, self._failed_at = raw, now, None

    def note(self, flag: str) -> None:
        """Something else was wrong with this device."""
        self._flags[flag] += 1

    def counter(self) -> Counter:
        """The total so far."""
        joules = self._steps * self.device.joules_per_step
        return Counter(
            joules=joules,
            lower=joules * (1 - self.device.accuracy),
            upper=joules * (1 + self.device.accuracy) + self._unseen_joules + self._pending_joules(),
            provenance=Provenance.MEASURED,
            source=self.device.source,
            scope=self.device.scope,
            seen_seconds=self._seen_seconds,
            period_seconds=self.device.period_seconds,
            flags=dict(self._flags),
        )

    def _pending_joules(self) -> float:
        """Most that was spent since the last good read, while reads fail."""
        silence = 0.0 if self._raw is None or self._failed_at is None else self._failed_at - self._at
        return self.device.most_watts * silence

    def _steps_to(self, raw: int, now: float) -> int | None:
        """Steps since the last value; None where the counter was set to something new."""
        assert self._raw is not None
        steps = raw - self._raw
        if steps >= 0:
            if self._is_plausible(steps, now):
                return steps
            self._flags["implausible_jump"] += 1
            return None
        if self.device.range_steps is None or not self._is_plausible(steps + self.device.range_steps, now):
            self._flags["counter_reset"] += 1
            return None
        self._flags["wrap"] += 1
        return steps + self.device.range_steps

    def _is_plausible(self, steps: int, now: float) -> bool:
        """Could the device have spent that since the counter last changed? A period and a coarse step are slack."""
        seconds = now - self._changed_at + (self.device.period_seconds or 0.0)
        return steps * self.device.joules_per_step <= self.device.most_watts * seconds + self.device.slack_joules

    def _account(self, now: float, steps: int | None, *, stopped: bool) -> None:
        """Count the interval as seen, or as one that may hold more than its steps."""
        seconds = now - self._at
        if self._is_believed(seconds, steps, now, stopped=stopped):
            self._seen_seconds += seconds
        else:
            shown = (steps or 0) * self.device.joules_per_step
            self._unseen_joules += max(0.0, self.device.most_watts * seconds - shown)
        self._steps += steps or 0

    def _is_believed(self, seconds: float, steps: int | None, now: float, *, stopped: bool) -> bool:
        if steps is None:
            return False
        if stopped or (self._failed_at is not None and seconds > LONGEST_SILENCE_SECONDS):
            self._flags["gap"] += 1
            return False
        if self._may_hide_wrap(seconds):
            self._flags["gap_may_hide_wrap"] += 1
            return False
        if steps == 0 and now - self._changed_at > self.device.stuck_seconds:
            self._flags["stuck"] += 1
            return False
        return True

    def _may_hide_wrap(self, seconds: float) -> bool:
        if self.device.range_steps is None:
            return False
        return self.device.most_watts * seconds > self.device.range_steps * self.device.joules_per_step


@dataclass
class PowerTotal:
    """A power sensor, integrated over time by straight lines between samples."""

    device: Device
    _flags: Tally[str] = field(default_factory=Tally)
    _watts: float | None = None
    _at: float = 0.0
    _failed_at: float | None = None
    _joules: float = 0.0
    _seen_seconds: float = 0.0
    _unseen_joules: float = 0.0

    def add(self, now: float, watts: float | None, *, stopped: bool = False) -> None:
        """The sensor shows `watts` at `now` (monotonic seconds); None where it could not be read."""
        if watts is None or not 0 <= watts <= self.device.most_watts:
            self._flags["read_failed" if watts is None else "implausible_power"] += 1
            self._failed_at = now
            return
        if self._watts is not None:
            self._join(now - self._at, (self._watts + watts) / 2, stopped=stopped)
        self._watts, self._at, self._failed_at = watts, now, None

    def note(self, flag: str) -> None:
        """Something else was wrong with this device."""
        self._flags[flag] += 1

    def counter(self) -> Counter:
        """The total so far."""
        return Counter(
            joules=self._joules,
            lower=self._joules * (1 - self.device.accuracy),
            upper=self._joules * (1 + self.device.accuracy) + self._unseen_joules + self._pending_joules(),
            provenance=Provenance.INTEGRATED,
            source=self.device.source,
            scope=self.device.scope,
            seen_seconds=self._seen_seconds,
            period_seconds=self.device.period_seconds,
            flags=dict(self._flags),
        )

    def _pending_joules(self) -> float:
        """Most that was spent since the last good read, while reads fail."""
        silence = 0.0 if self._watts is None or self._failed_at is None else self._failed_at - self._at
        return self.device.most_watts * silence

    def _join(self, seconds: float, watts: float, *, stopped: bool) -> None:
        if stopped or seconds > self.device.longest_gap_seconds:
            self._flags["gap"] += 1
            self._unseen_joules += self.device.most_watts * seconds
            return
        self._joules += watts * seconds
        self._seen_seconds += seconds
