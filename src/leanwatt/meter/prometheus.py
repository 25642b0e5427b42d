"""Energy counters that a Prometheus server already collects: DCGM's of GPUs, Kepler's of packages and DRAM.

Raw samples are read with their own times, not `rate()`, so that resets, gaps and repeats stay visible. Samples come
every 15 s or so: only windows of many minutes are worth something, and shorter ones are flagged `short`. A clock that
is d seconds off costs d over the length of the window. User and password come from LEANWATT_PROMETHEUS_USER and
LEANWATT_PROMETHEUS_PASSWORD. Not yet run against a real server: tested against a local one.
References: Prometheus, HTTP API, instant queries; NVIDIA dcgm-exporter, default counters; Kepler, metrics.
"""

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, final
from urllib.parse import quote

from leanwatt.contracts import Meter
from leanwatt.errors import MeterError
from leanwatt.measurement import Counter, Scope, SourceStatus
from leanwatt.meter._http import Poller, UnreadableError, endpoint, require_url, unasked
from leanwatt.meter._reader import Reader, require_positive, sampling
from leanwatt.meter._totals import CounterTotal, Device, median_gap

METRICS: Final = {"dcgm": "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "kepler": "kepler_node_cpu_joules_total"}
STEPS_PER_UNIT: Final = {"dcgm": 1, "kepler": 1000}
"""DCGM counts millijoules and Kepler joules; both are kept in millijoules."""
HELD_PERIODS: Final = 2
"""Between samples the counter counts as seen for so long."""
CLOCK_SECONDS: Final = 0.5
"""The wall clock may drift so far from the monotonic one before the samples' times are doubted."""


@dataclass(frozen=True)
class _Sample:
    wall_seconds: float
    steps: int


_Series = Mapping[str, Sequence[_Sample]]


@final
@dataclass(frozen=True)
class Prometheus(Meter):
    """Joules of GPUs or of packages and DRAM, from counters that a server collects."""

    url: str
    """Of the server: `http://prometheus.example:9090`."""
    kind: Literal["dcgm", "kepler"]
    """Whose counters: GPUs (DCGM) or CPU zones (Kepler)."""
    selector: str = ""
    """Labels of this node, as in PromQL: `Hostname="node7"`. Needed where the server sees several."""
    every_seconds: float = 5.0
    """How often to ask."""
    longest_gap_seconds: float = 45.0
    """Samples further apart do not count as seen."""
    most_watts: float = 2000.0
    """No device draws more: larger steps are rejected."""

    def __post_init__(self) -> None:
        require_url(self.url)
        require_positive(
            every_seconds=self.every_seconds,
            longest_gap_seconds=self.longest_gap_seconds,
            most_watts=self.most_watts,
        )

    def open(self) -> AbstractContextManager[Reader]:
        """Start asking. Raises MeterError if there is no series within 2.5 s, or more than one of a device."""
        query = quote(f"{METRICS[self.kind]}{{{self.selector}}}[{round(4 * self.longest_gap_seconds)}s]")
        server = endpoint(f"{self.url.rstrip('/')}/api/v1/query?query={query}", "PROMETHEUS")
        poller = Poller(lambda: _series(server.get(), self.kind), self.every_seconds)
        devices = poller.first("prometheus")
        if not devices:
            poller.close()
            raise MeterError(f"meter: prometheus has no {METRICS[self.kind]}{{{self.selector}}}. Check the selector.")
        return sampling([_Source(poller, [self._device(name) for name in devices], self.longest_gap_seconds)])

    def _device(self, name: str) -> Device:
        scope = name.partition("-")[0]
        assert scope in ("gpu", "package", "dram")
        scopes: dict[str, Scope] = {"gpu": "gpu", "package": "package", "dram": "dram"}
        return Device(
            name, "prometheus", scopes[scope], self.most_watts, joules_per_step=1e-3, stuck_seconds=float("inf")
        )


def status() -> SourceStatus:
    """What `doctor` shows of it before an address is given."""
    return unasked("prometheus", "url: http://prometheus.example:9090, kind: dcgm")


@final
class _Source:
    """The series with their running totals, on the samples' own times."""

    of_process = False

    def __init__(self, poller: Poller[_Series], devices: Sequence[Device], longest_gap_seconds: float) -> None:
        self._poller = poller
        self._longest_gap_seconds = longest_gap_seconds
        self._totals = {device.name: CounterTotal(device) for device in devices}
        self._taken: dict[str, float] = {}
        self._offset = time.monotonic() - time.time()
        self._number = 0
        self._now = time.monotonic()

    def tick(self, now: float, stopped: bool) -> None:
        """Take the samples that are new. A stop of this process takes nothing from a counter that others read."""
        self._now = now
        polled = self._poller.last()
        if polled.number == self._number:
            return
        self._number = polled.number
        if abs(time.monotonic() - time.time() - self._offset) > CLOCK_SECONDS:
            self._note("clock_stepped")
        if polled.value is None:
            self._note(polled.flag)
            return
        for name, samples in polled.value.items():
            if name in self._totals:
                self._take(name, samples)

    def slow_tick(self, now: float) -> None:
        """The poller has a thread of its own."""

    def counters(self) -> Mapping[str, Counter]:
        """The totals up to the last sample of each; those of which none has come are absent."""
        return {name: self._held(name, self._totals[name].counter()) for name in self._taken}

    def close(self) -> None:
        """Stop asking."""
        self._poller.close()

    def _held(self, name: str, counter: Counter) -> Counter:
        since = self._now - self._taken[name]
        held = min(max(0.0, since), HELD_PERIODS * (counter.period_seconds or 0.0))
        return replace(counter, seen_seconds=counter.seen_seconds + held)

    def _note(self, flag: str) -> None:
        for total in self._totals.values():
            total.note(flag)

    def _take(self, name: str, samples: Sequence[_Sample]) -> None:
        """New samples in their order; what an answer repeats of the one before is passed over in silence."""
        total, before = self._totals[name], float("-inf")
        period = median_gap([sample.wall_seconds for sample in samples])
        if period is not None:
            total.device = replace(total.device, period_seconds=max(0.0, period))
        for sample in samples:
            at = sample.wall_seconds + self._offset
            if at <= before:
                total.note("duplicate" if at == before else "out_of_order")
            elif at > self._taken.get(name, float("-inf")):
                gap = at - self._taken.get(name, at)
                total.add(at, sample.steps, stopped=gap > self._longest_gap_seconds)
                self._taken[name] = at
            before = max(before, at)


def _series(answer: Any, kind: str) -> _Series:
    """Samples by device. Raises UnreadableError for an answer that is none, or that has two series of one device."""
    found: dict[str, list[_Sample]] = {}
    match answer:
        case {"status": "success", "data": {"resultType": "matrix", "result": [*series]}}:
            pass
        case _:
            raise UnreadableError("garbled")
    for each in series:
        try:
            name = _device_name(each["metric"], kind)
            samples = [_Sample(float(at), round(float(value) * STEPS_PER_UNIT[kind])) for at, value in each["values"]]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise UnreadableError("garbled") from None
        if name in found:
            raise UnreadableError("several series of one device: narrow the selector")
        if name:
            found[name] = samples
    return found


def _device_name(labels: Mapping[str, str], kind: str) -> str | None:
    """`gpu-0`, `package-0`, `dram-0`; None for parts of a package and whole boards, which are never added."""
    if kind == "dcgm":
        return f"gpu-{labels['gpu']}"
    zone = re.match(r"(package|dram)\b", labels["zone"])
    socket = re.search(r"intel-rapl:(\d+)", labels.get("path", ""))
    return f"{zone.group(1)}-{socket.group(1) if socket else 0}" if zone else None
