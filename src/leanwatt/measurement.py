"""Energy arithmetic. Joules and seconds only; unknown is absent, never 0; every figure says where it comes from."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

Scope = Literal["package", "dram", "gpu", "node", "memory"]
"""What a device's figure covers. `node` holds all others; `memory` is an estimate shown apart, never in a total."""

FULL_COVERAGE = 0.99
"""Seen for less of the time than this, a figure is incomplete."""
UNATTRIBUTED = "unattributed"
"""The stage that holds what the named stages of a job leave over: imports, reading data, saving."""
PREFILL, PREFILL_AND_DECODE = "phase/prefill", "phase/prefill and decode"
"""Stages that answer with one new token, and with more, at fixed lengths: their difference is decoding."""
PERIODS_PER_WINDOW = 50
"""A window of so many sensor periods is off by 2 % at most, whatever its phase (docs/energy.md)."""
CONTENDED_SHARE = 0.05
"""Other processes that use more of the machine's CPU time than this spoil a window."""
CONTENDED_SECONDS = 5.0
"""Shorter windows are not judged: the kernel counts other processes' time in steps of 10 ms, sampled each second."""
SUSPICIOUS = frozenset({"stuck", "implausible_jump", "disagrees"})
"""Flags of a sensor that contradicts itself or another one."""

SPOILING = SUSPICIOUS | {"contended", "counter_reset", "gap", "gap_may_hide_wrap", "implausible_power", "killed"}
"""Flags of a window that is to be repeated, not averaged in. Others (`wrap`, `read_failed`, `short`) only inform."""


class Provenance(StrEnum):
    """Where a figure comes from, best first. A total is as good as its worst part."""

    MEASURED = "measured"
    """A hardware energy counter, read without gaps."""
    INTEGRATED = "integrated"
    """Power samples, integrated over time."""
    INCOMPLETE = "measured-incomplete"
    """A counter or power sensor that was lost for part of the time: a lower bound."""
    SUSPECT = "measured-suspect"
    """A sensor that contradicts itself or another one."""
    ATTRIBUTED = "attributed"
    """A share of a larger measured figure."""
    ESTIMATED = "estimated"
    """No sensor: computed from CPU time and a table; see the band."""
    ABSENT = "absent"
    """Unknown."""


def worst(provenances: Iterable[Provenance]) -> Provenance:
    """The least trustworthy; ABSENT for none at all."""
    order = list(Provenance)
    return max(provenances, key=order.index, default=Provenance.ABSENT)


@dataclass(frozen=True)
class SourceStatus:
    """What `doctor` shows of one source of energy figures."""

    source: str
    """The meter's name: `rapl`."""
    status: Literal["ok", "denied", "masked", "absent"]
    """Readable; there but not for us; hidden by a container; not there."""
    detail: str
    """One line: what was found."""
    fix: str = ""
    """One command or step that would help; empty where nothing does."""
    period_seconds: float | None = None
    """How often the sensor changes its value, as measured now."""


@dataclass(frozen=True)
class Counter:
    """The running total of one device at one instant."""

    joules: float
    """Since the meter was opened; only differences mean anything."""
    lower: float
    upper: float
    """Bounds that grow with `joules`, so that differences of bounds are bounds of differences."""
    provenance: Provenance
    source: str
    """Which reader, for example `rapl`."""
    scope: Scope
    seen_seconds: float
    """Time, since the meter was opened, in which the device was really read."""
    period_seconds: float | None = None
    """How often the sensor changes its value, as measured."""
    flags: Mapping[str, int] = field(default_factory=dict)
    """What went wrong, and how often: `wrap`, `counter_reset`, `read_failed`, ..."""


@dataclass(frozen=True)
class Reading:
    """What a meter shows at one instant."""

    at_seconds: float
    """Monotonic clock."""
    cpu_seconds: float
    """User and system time of this process and its finished children."""
    devices: Mapping[str, Counter] = field(default_factory=dict)
    """By device, e.g. `package-0`, `gpu-0`. A device that cannot be read is absent, never 0."""
    other_cpu_seconds: float | None = None
    """CPU time of all other processes on this machine since boot, read about once a second; None where unknown."""
    cpus: int = 1
    """Hardware threads of this machine, which `other_cpu_seconds` is a share of."""


@dataclass(frozen=True)
class Energy:
    """Joules spent by one device, or by several together, with bounds and provenance."""

    joules: float | None
    lower: float | None = None
    upper: float | None = None
    provenance: Provenance = Provenance.ABSENT
    source: str = ""
    scope: str = ""
    coverage: float = 1.0
    """Share of the time in which the device was really read."""
    period_seconds: float | None = None
    flags: tuple[str, ...] = ()

    @classmethod
    def between(cls, begin: Counter, end: Counter, seconds: float) -> "Energy":
        """What one device spent between two readings of it, `seconds` apart.

        No powered device spends 0 J: a total that did not move is unknown (a window too short, a sensor lost).
        A window too short for the sensor is flagged `short`, and its bounds hold the energy that the edges may hide.
        """
        coverage = min(1.0, (end.seen_seconds - begin.seen_seconds) / seconds) if seconds > 0 else 1.0
        flags = _new_flags(begin, end, seconds)
        joules = end.joules - begin.joules
        known = cls(
            joules=joules,
            lower=min(joules, end.lower - begin.lower),
            upper=max(joules, end.upper - begin.upper),
            provenance=_judged(worst([begin.provenance, end.provenance]), coverage, flags),
            source=end.source,
            scope=end.scope,
            coverage=coverage,
            period_seconds=end.period_seconds,
            flags=flags,
        )
        if joules <= 0:
            return replace(known, joules=None, lower=None, upper=None, provenance=Provenance.ABSENT)
        return known._widened(_edge_joules(joules, end.period_seconds, seconds))

    def share(self, part: float) -> "Energy":
        """The part of a larger figure that belongs to one process, ticket or token; `part` from 0 to 1."""
        if not 0 <= part <= 1:
            raise ValueError(f"got a share of {part}; a share lies between 0 and 1.")
        if self.joules is None:
            return self
        return replace(
            self,
            joules=self.joules * part,
            lower=None if self.lower is None else self.lower * part,
            upper=None if self.upper is None else self.upper * part,
            provenance=worst([self.provenance, Provenance.ATTRIBUTED]),
        )

    def _widened(self, joules: float) -> "Energy":
        lower = None if self.lower is None else max(0.0, self.lower - joules)
        upper = None if self.upper is None else self.upper + joules
        return replace(self, lower=lower, upper=upper)


def _new_flags(begin: Counter, end: Counter, seconds: float) -> tuple[str, ...]:
    risen = {flag for flag, times in end.flags.items() if times > begin.flags.get(flag, 0)}
    short = end.period_seconds is not None and seconds < shortest_window_seconds(end.period_seconds)
    return tuple(sorted(risen | ({"short"} if short else set())))


def _judged(provenance: Provenance, coverage: float, flags: Sequence[str]) -> Provenance:
    """An estimate has no sensor to lose or to doubt; anything measured is as good as its worst moment."""
    if provenance in (Provenance.ESTIMATED, Provenance.ABSENT):
        return provenance
    if SUSPICIOUS & set(flags):
        return worst([provenance, Provenance.SUSPECT])
    return worst([provenance, Provenance.INCOMPLETE]) if coverage < FULL_COVERAGE else provenance


def _edge_joules(joules: float, period_seconds: float | None, seconds: float) -> float:
    """Most that the edges can hide: k steps were seen in k - 1 to k + 1 periods, so the figure is off by one step."""
    if not period_seconds:
        return 0.0
    return joules * period_seconds / max(seconds - period_seconds, period_seconds)


def shortest_window_seconds(period_seconds: float | None) -> float:
    """Windows shorter than this say little with a sensor of that period; 0 where there is no sensor."""
    return PERIODS_PER_WINDOW * (period_seconds or 0.0)


@dataclass(frozen=True)
class Measurement:
    """What one stage cost."""

    stage: str
    """`load`, `finetune`, `prune`, `quantize`, `convert`, `grade/<task>`, `weigh/<task>`, ..."""
    seconds: float
    cpu_seconds: float
    devices: Mapping[str, Energy] = field(default_factory=dict)
    idle_watts: Mapping[str, float] = field(default_factory=dict)
    """Per device, read in the same round; a device without an idle reading is absent."""
    answers: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    reused: bool = False
    """Spent by an earlier trial that made the same thing; study totals leave it out."""
    flags: tuple[str, ...] = ()
    within: str = ""
    """The stage that this one is a part of; empty for the stages of a job, which add up to it."""

    @classmethod
    def between(cls, stage: str, begin: Reading, end: Reading) -> "Measurement":
        """The cost of what happened between two readings of one meter."""
        seconds = end.at_seconds - begin.at_seconds
        devices = sorted(begin.devices.keys() & end.devices.keys())
        spent = {name: Energy.between(begin.devices[name], end.devices[name], seconds) for name in devices}
        flags = ("contended",) if _contended(begin, end) else ()
        return cls(stage, seconds, end.cpu_seconds - begin.cpu_seconds, spent, flags=flags)

    def part(self, name: str, took: tuple[float, float]) -> "Measurement":
        """A part of this stage that `took` so many seconds and CPU-seconds: its energy is its share by CPU time."""
        seconds, cpu_seconds = took
        share = min(1.0, cpu_seconds / self.cpu_seconds) if self.cpu_seconds > 0 else 0.0
        devices = {device: energy.share(share) for device, energy in self.devices.items()} if share else {}
        return Measurement(name, seconds, cpu_seconds, devices, within=self.stage)

    def rest(self, parts: Sequence["Measurement"]) -> "Measurement":
        """What of this stage its parts do not account for; a device that is unknown in one of them is absent."""
        devices = {}
        for name, energy in self.devices.items():
            known = [part.devices.get(name, Energy(None)) for part in parts]
            joules = unattributed(energy, known)
            if joules is not None:
                devices[name] = replace(energy, joules=joules, lower=None, upper=None)
        seconds = self.seconds - math.fsum(part.seconds for part in parts)
        cpu_seconds = self.cpu_seconds - math.fsum(part.cpu_seconds for part in parts)
        return Measurement(UNATTRIBUTED, seconds, cpu_seconds, devices)

    @property
    def is_spoiled(self) -> bool:
        """Did something happen that calls for a repeat: neighbours, a suspend, a sensor lost, reset or lying?"""
        lost = any(energy.provenance in (Provenance.INCOMPLETE, Provenance.SUSPECT) for energy in self.devices.values())
        return lost or bool(SPOILING & {*self.flags, *(flag for e in self.devices.values() for flag in e.flags)})

    @property
    def total(self) -> Energy:
        """All devices together; a whole-node figure stands alone, since it holds the others."""
        return total(self.devices)


def whole_stages(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Those that add up to a job: a part of a stage, such as calibrating within pruning, is in that one's figure."""
    return [each for each in measurements if not each.within]


def _contended(begin: Reading, end: Reading) -> bool:
    """Did other processes use more than 5 % of the machine? False where that is not known."""
    seconds = end.at_seconds - begin.at_seconds
    if begin.other_cpu_seconds is None or end.other_cpu_seconds is None or seconds < CONTENDED_SECONDS:
        return False
    return end.other_cpu_seconds - begin.other_cpu_seconds > CONTENDED_SHARE * seconds * end.cpus


def total(devices: Mapping[str, Energy]) -> Energy:
    """Sum of devices: the worst provenance, the least coverage, all flags. Estimated memory is never part of it.

    A device whose figure is unknown is left out and named: flag `without gpu-0`.
    """
    counted = {name: e for name, e in devices.items() if e.scope != "memory"}
    node = next((name for name, e in counted.items() if e.scope == "node" and e.joules is not None), None)
    parts = {node: counted[node]} if node else {name: e for name, e in counted.items() if e.scope != "node"}
    known = [e for e in parts.values() if e.joules is not None]
    missing = [f"without {name}" for name, e in parts.items() if e.joules is None]
    if not known:
        return Energy(None, flags=tuple(sorted(missing)))
    return Energy(
        joules=sum(e.joules for e in known if e.joules is not None),
        lower=_sum_or_none([e.lower for e in known]),
        upper=_sum_or_none([e.upper for e in known]),
        provenance=worst(e.provenance for e in known),
        source="+".join(sorted({e.source for e in known})),
        scope="+".join(sorted({e.scope for e in known})),
        coverage=min(e.coverage for e in known),
        period_seconds=max((e.period_seconds for e in known if e.period_seconds), default=None),
        flags=tuple(sorted({flag for e in known for flag in e.flags} | set(missing))),
    )


def _sum_or_none(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def unattributed(parent: Energy, parts: Iterable[Energy]) -> float | None:
    """Joules of a stage that its parts do not account for; negative where parts overlap; None where one is unknown."""
    known = _sum_or_none([part.joules for part in parts])
    return None if parent.joules is None or known is None else parent.joules - known


def why_not_comparable(first: Energy, second: Energy) -> str | None:
    """Why two figures of one machine may not be ranked against each other; None where they may."""
    if first.joules is None or second.joules is None:
        return "one of the two is unknown"
    for what in ("scope", "provenance", "source"):
        mine, other = str(getattr(first, what)), str(getattr(second, what))
        if mine != other:
            return f"their {what} differs: {mine} and {other}"
    return None


def cross_checked(figure: Energy, other: Energy, tolerance: float = 0.10) -> Energy:
    """`figure`, made suspect if another sensor of the same thing is more than `tolerance` away from it."""
    if figure.joules is None or not other.joules or abs(figure.joules / other.joules - 1) <= tolerance:
        return figure
    flags = tuple(sorted({*figure.flags, "disagrees"}))
    return replace(figure, flags=flags, provenance=worst([figure.provenance, Provenance.SUSPECT]))


def has_drifted(idle_before_watts: float, idle_after_watts: float, tolerance: float = 0.03) -> bool:
    """Did the idle power change during a round by more than `tolerance` of what it was?"""
    return abs(idle_after_watts - idle_before_watts) > tolerance * idle_before_watts


def is_stable(times: Sequence[float], last: int = 5, variation: float = 0.02) -> bool:
    """Is the warm-up over? True once the last few times have a coefficient of variation below `variation`."""
    tail = times[-last:]
    if len(tail) < last:
        return False
    mean = math.fsum(tail) / last
    deviation = math.sqrt(math.fsum((each - mean) ** 2 for each in tail) / (last - 1))
    return deviation < variation * mean
