"""CPU packages and their memory by the energy counters of RAPL, which Linux shows under /sys/class/powercap.

Package and DRAM zones are read; DRAM is separate from the package. `psys` (the whole board), `core` and `uncore`
(parts of the package) are never added. Dies that mirror one counter are counted once. The counters cover everything
that the machine runs, not this process alone.

Reference: Linux kernel, Documentation/power/powercap/powercap.rst; the faults met here are listed in docs/energy.md.
Not yet run on hardware with RAPL: tested against folders laid out as the kernel does.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, final

from leanwatt.contracts import Meter
from leanwatt.errors import MeterError
from leanwatt.measurement import SourceStatus
from leanwatt.meter._reader import HERTZ, Reader, require_positive, sampling
from leanwatt.meter._zones import MOST_WATTS, ZoneSource, find

FIX_DENIED: Final = (
    "sudo find /sys/devices/virtual/powercap -name energy_uj -exec chgrp $(id -g) {} + -exec chmod 440 {} +"
)
FIX_MASKED: Final = "docker run -v /sys/devices/virtual/powercap:/zeus_sys/class/powercap:ro ..."
FIXES: Final = {"denied": FIX_DENIED, "masked": FIX_MASKED}


@final
@dataclass(frozen=True)
class Rapl(Meter):
    """Joules of packages and DRAM, from the CPU's own counters."""

    root: str = ""
    """The powercap folder; empty looks in the usual places, the host's as mounted in a container included."""
    most_watts: float = MOST_WATTS
    """No package draws more: tells a counter that wrapped from one that was reset."""
    hertz: float = HERTZ
    """Samples per second between the edges of windows, so that no wrap goes unseen."""

    def __post_init__(self) -> None:
        require_positive(most_watts=self.most_watts, hertz=self.hertz)

    def open(self) -> AbstractContextManager[Reader]:
        """Start reading. Raises MeterError where no counter can be read, and says what would help."""
        found = find(self.root)
        if not found.zones:
            fix = FIXES.get(found.status, "choose `meter: auto`, which takes the best there is and says which")
            raise MeterError(f"meter: rapl found no counter it can read: {found.detail}. What helps: {fix}")
        return sampling([ZoneSource(found, self.most_watts)], hertz=self.hertz)


def status(root: str = "") -> SourceStatus:
    """What `doctor` shows of RAPL."""
    found = find(root)
    return SourceStatus("rapl", found.status, found.detail, FIXES.get(found.status, ""), found.period_seconds)
