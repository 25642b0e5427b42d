"""What the idle machine draws, read once before each round, so that net figures can be given beside gross ones."""

import time
from collections.abc import Mapping
from typing import Final

from leanwatt.contracts import Meter
from leanwatt.measurement import Measurement, Provenance, shortest_window_seconds

SENSED: Final = (Provenance.MEASURED, Provenance.INTEGRATED)
"""An estimate follows our own CPU time: it knows nothing of an idle machine."""
LONGEST_SECONDS: Final = 60.0
"""A sensor that needs more than this is watched for so long all the same."""


def idle_watts(meter: Meter, seconds: float) -> Mapping[str, float]:
    """Mean watts by device while this process only sleeps; longer than `seconds` where the sensor is slow.

    A device without a sensor is absent, and so is one whose reading was spoiled. Nothing is waited for where there is
    no sensor at all.
    """
    with meter.open() as read:
        begin = read()
        if not any(counter.provenance in SENSED for counter in begin.devices.values()):
            return {}
        time.sleep(seconds)
        periods = [counter.period_seconds or 0.0 for counter in read().devices.values()]
        needed = min(LONGEST_SECONDS, max(map(shortest_window_seconds, periods)))
        time.sleep(max(0.0, needed - seconds))
        watched = Measurement.between("idle", begin, read())
    return {
        name: energy.joules / watched.seconds
        for name, energy in watched.devices.items()
        if energy.joules is not None and energy.provenance in SENSED
    }
