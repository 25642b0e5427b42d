"""What the idle machine draws, so that net figures can be given beside gross ones; and whether it is left alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from leanwatt import catalog
from leanwatt.machine import quiet
from leanwatt.measurement import Measurement, Provenance, Reading, shortest_window_seconds
from leanwatt.recipe import Choice

SENSED: Final = (Provenance.MEASURED, Provenance.INTEGRATED)
"""An estimate follows our own CPU time: it knows nothing of an idle machine."""
LONGEST_SECONDS: Final = 60.0
"""A sensor that needs more than this is watched for so long all the same."""
GLANCE_SECONDS: Final = 1.0
"""For the neighbours, where there is no sensor to watch."""


@dataclass(frozen=True)
class Idle:
    """A machine on which this process only waits."""

    watts: Mapping[str, float]
    """By device; one without a sensor, or with a spoiled reading, is absent."""
    is_quiet: bool | None
    """Did others leave it alone? None where that cannot be known."""


def idle(read: Callable[[], Reading], seconds: float) -> Idle:
    """Watch the machine for `seconds`, longer where the sensor is slow; for one second where there is no sensor."""
    begin = read()
    sensed = [counter for counter in begin.devices.values() if counter.provenance in SENSED]
    if not sensed:
        return Idle({}, quiet(GLANCE_SECONDS).is_quiet)
    slowest = max(shortest_window_seconds(counter.period_seconds) for counter in sensed)
    calm = quiet(min(max(seconds, slowest), LONGEST_SECONDS))
    watched = Measurement.between("idle", begin, read())
    watts = {
        name: energy.joules / watched.seconds
        for name, energy in watched.devices.items()
        if energy.joules is not None and energy.provenance in SENSED
    }
    return Idle(watts, calm.is_quiet)


def watch(asked: tuple[Choice, float]) -> Idle:
    """The same as a job: with which meter, and for how many seconds."""
    meter, seconds = asked
    with catalog.build(meter).open() as read:
        return idle(read, seconds)
