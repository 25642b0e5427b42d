"""What this machine can measure: every source of energy figures, its status, and the one step that would help."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Final

from leanwatt import catalog
from leanwatt.errors import MeterError, MissingExtraError, UnknownNameError, not_among
from leanwatt.measurement import SourceStatus
from leanwatt.recipe import Choice

SOURCES: Final = ("rapl", "nvml", "redfish", "plug", "prometheus", "zeus", "codecarbon", "estimate")
"""In the order in which they are shown: counters of this machine, whole nodes, other libraries, and what is left."""
LOOK_SECONDS: Final = 6.0
"""How long a meter that was named is watched, to see how often it changes."""


def statuses(named: Choice | None = None) -> tuple[SourceStatus, ...]:
    """Every source as it is found here. `named`: a meter with its settings, which is opened and watched instead.

    Raises UnknownNameError for a name that is none of them.
    """
    if named is not None and named.name not in SOURCES:
        raise UnknownNameError(not_among("the sources", named.name, SOURCES))
    return tuple(
        _watched(named)
        if named is not None and named.name == name
        else import_module(f"leanwatt.meter.{name}").status()
        for name in SOURCES
    )


def _watched(meter: Choice) -> SourceStatus:
    """Open it and look. Raises StudyError for settings that cannot be."""
    try:
        with catalog.build(meter).open() as read:
            time.sleep(LOOK_SECONDS)
            devices = read().devices
    except MeterError as error:
        denied = "unauthorized" in str(error)
        fix = f"set LEANWATT_{meter.name.upper()}_USER and LEANWATT_{meter.name.upper()}_PASSWORD" if denied else ""
        return SourceStatus(meter.name, "denied" if denied else "absent", str(error), fix)
    except MissingExtraError as error:
        return SourceStatus(meter.name, "absent", str(error))
    if not devices:
        return SourceStatus(meter.name, "absent", "it opens, and gives no figure")
    slowest = max((each.period_seconds for each in devices.values() if each.period_seconds), default=None)
    return SourceStatus(meter.name, "ok", ", ".join(sorted(devices)), period_seconds=slowest)
