"""The energy counters that Linux shows under /sys/class/powercap: which there are, and which may be added up."""

import glob
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

from leanwatt.measurement import Counter
from leanwatt.meter._totals import CounterTotal, Device, observed_period

ROOTS: Final = ("/sys/class/powercap", "/zeus_sys/class/powercap")
"""The second is where a container may be given the host's, since the first is masked there."""
MOST_WATTS: Final = 1000.0
"""No package of today draws more."""
PROBE_SECONDS: Final = 0.25
PROBE_CHANGES: Final = 10
MIRROR_MICROJOULES: Final = 1_000_000
"""Counters of two dies of one package that stay this near to each other are one counter."""


@dataclass(frozen=True)
class Zone:
    """One counter: a package or the memory beside it."""

    folder: str
    device: str
    """`package-0`, `dram-0`."""

    def microjoules(self) -> int | None:
        """What it shows; None where that cannot be read.

        The file is opened each time: one kept open shows its last value for ever once the driver is reloaded.
        """
        try:
            return read_integer(f"{self.folder}/energy_uj")
        except (OSError, ValueError):
            return None

    def range_microjoules(self) -> int | None:
        """Where it starts again; None where that cannot be read."""
        try:
            return read_integer(f"{self.folder}/max_energy_range_uj")
        except (OSError, ValueError):
            return None


@dataclass(frozen=True)
class Found:
    """What there is of RAPL on this machine."""

    status: Literal["ok", "denied", "masked", "absent"]
    detail: str
    zones: tuple[Zone, ...] = ()
    period_seconds: float | None = None


def find(root: str = "") -> Found:
    """The zones that can be read and counted, in a fixed order; takes 0.25 s at most, to see how often they change."""
    order = ("ok", "denied", "masked", "absent")
    return min((_find_in(each) for each in ([root] if root else ROOTS)), key=lambda found: order.index(found.status))


def read_integer(path: str) -> int:
    """One number from a file of sysfs; blanks and line ends around it do not matter."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return int(os.read(descriptor, 64))
    finally:
        os.close(descriptor)


@final
class ZoneSource:
    """The zones of RAPL with their running totals, to be read alone or together with other sources."""

    of_process = False

    def __init__(self, found: Found, most_watts: float = MOST_WATTS) -> None:
        self._totals = [(zone, CounterTotal(_device(zone, found, most_watts))) for zone in found.zones]

    def tick(self, now: float, stopped: bool) -> None:
        """Read each counter."""
        for zone, total in self._totals:
            total.add(now, zone.microjoules(), stopped=stopped)

    def slow_tick(self, now: float) -> None:
        """Nothing here is dear."""

    def counters(self) -> Mapping[str, Counter]:
        """The totals, by device."""
        return {zone.device: total.counter() for zone, total in self._totals}

    def close(self) -> None:
        """No file is kept open."""


def _device(zone: Zone, found: Found, most_watts: float) -> Device:
    scope: Literal["package", "dram"] = "dram" if zone.device.startswith("dram") else "package"
    return Device(
        zone.device,
        "rapl",
        scope,
        most_watts,
        range_steps=zone.range_microjoules(),
        period_seconds=found.period_seconds,
    )


def _find_in(root: str) -> Found:
    if not os.path.isdir(root):
        return Found("absent", f"{root} is not there (no RAPL, or a virtual machine)")
    folders = _zone_folders(root)
    if not folders:
        return Found("masked", f"{root} is there but has no zones (hidden by a container, or no driver loaded)")
    zones = [Zone(folder, name) for folder in folders if (name := _device_name(folder))]
    denied = [zone for zone in zones if _is_denied(zone)]
    readable = [zone for zone in zones if zone not in denied and zone.microjoules() is not None]
    if not readable:
        why = f"{len(denied)} counters are there but not readable for us" if denied else "no counter can be read"
        return Found("denied" if denied else "absent", f"{root}: {why}")
    period = period_seconds(readable[0])
    counted = _without_mirrors([zone for zone in readable if zone.microjoules() != 0])
    detail = ", ".join(zone.device for zone in counted) + (f"; {len(denied)} not readable for us" if denied else "")
    return Found("ok", detail, tuple(counted), period) if counted else Found("absent", f"{root}: counters stay at 0")


def _zone_folders(root: str) -> list[str]:
    """Each zone once, whether the folder has the flat links, the nested folders or both. `intel-rapl-mmio` repeats."""
    patterns = [f"{top}intel-rapl:*{sub}" for top in ("", "intel-rapl/") for sub in ("", "/intel-rapl:*")]
    found = {os.path.realpath(path) for pattern in patterns for path in glob.glob(f"{glob.escape(root)}/{pattern}")}
    return sorted(path for path in found if os.path.lexists(f"{path}/energy_uj"))


def _device_name(folder: str) -> str | None:
    """`package-0`, or `dram-0` for the memory of package 0; None for what is never added."""
    name = _name(folder)
    if name.startswith("package-"):
        return name
    if name == "dram":
        return _name(os.path.dirname(folder)).replace("package", "dram", 1) or None
    return None


def _name(folder: str) -> str:
    try:
        with open(f"{folder}/name", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _is_denied(zone: Zone) -> bool:
    try:
        read_integer(f"{zone.folder}/energy_uj")
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return False


def _without_mirrors(zones: Sequence[Zone]) -> list[Zone]:
    """Dies of one package whose counters stay together are one counter; packages never are, however near."""
    kept: list[Zone] = []
    for zone in zones:
        if not any(_same_package(zone, other) and _stays_together(zone, other) for other in kept):
            kept.append(zone)
    return kept


def _same_package(first: Zone, second: Zone) -> bool:
    packages = [re.sub(r"-die-\d+$", "", zone.device) for zone in (first, second)]
    return packages[0] == packages[1]


def _stays_together(first: Zone, second: Zone) -> bool:
    for _ in range(2):
        one, other = first.microjoules(), second.microjoules()
        if one is None or other is None or abs(one - other) > MIRROR_MICROJOULES:
            return False
        time.sleep(0.02)
    return True


def period_seconds(zone: Zone) -> float | None:
    """How often the counter changes, as seen now; None where it stood still."""
    return observed_period(zone.microjoules, PROBE_SECONDS, PROBE_CHANGES, pause=0.0001)
