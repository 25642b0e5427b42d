"""Idle power: read where there is a sensor, absent where there is none."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from leanwatt.contracts import Meter
from leanwatt.idle import GLANCE_SECONDS, idle
from leanwatt.measurement import Counter, Provenance, Reading


@dataclass(frozen=True)
class Fake(Meter):
    """Devices at steady watts: name -> (watts, provenance, sensor period)."""

    devices: dict[str, tuple[float, Provenance, float | None]]

    @contextmanager
    def open(self) -> Iterator[Callable[[], Reading]]:
        def read() -> Reading:
            now = time.monotonic()
            counters = {
                name: Counter(watts * now, watts * now, watts * now, provenance, "fake", "package", now, period)
                for name, (watts, provenance, period) in self.devices.items()
            }
            return Reading(now, time.process_time(), counters)

        yield read


def test_watts_of_what_has_a_sensor() -> None:
    meter = Fake({
        "package-0": (40.0, Provenance.MEASURED, 0.001),
        "node": (90.0, Provenance.INTEGRATED, None),
        "cpu": (7.0, Provenance.ESTIMATED, None),
    })  # fmt: skip
    with meter.open() as read:
        found = idle(read, 0.05)
    assert found.watts == pytest.approx({"package-0": 40.0, "node": 90.0}, rel=1e-3)


def test_no_sensor_no_watts_and_a_glance_at_the_neighbours_only() -> None:
    for devices in ({}, {"cpu": (7.0, Provenance.ESTIMATED, None)}):
        started = time.monotonic()
        with Fake(devices).open() as read:
            assert idle(read, 30.0).watts == {}
        assert GLANCE_SECONDS <= time.monotonic() - started < 15.0


def test_a_slow_sensor_is_watched_for_longer() -> None:
    started = time.monotonic()
    with Fake({"package-0": (40.0, Provenance.MEASURED, 0.01)}).open() as read:
        assert idle(read, 0.05).watts
    assert time.monotonic() - started >= 0.5
