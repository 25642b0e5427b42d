"""The estimate behind `estimate` and `auto`: thermal design power by CPU model, and our share of it by CPU time."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

from leanwatt.machine import memory_bytes
from leanwatt.measurement import Counter, Provenance, Scope
from leanwatt.meter._reader import local_rank, own_cpu_seconds

IDLE_SHARE: Final = 0.155
"""Of the TDP, drawn with nothing to do."""
BUSY_SHARE: Final = 0.606
"""Of the TDP, drawn on top by CPU time."""
BAND: Final = 3.2
"""Nine times in ten the truth lies within estimate / BAND and estimate * BAND: 2.9 for the curve, 11 % for the line."""
GUESS_BAND: Final = 5.0
"""The same where the TDP is itself a guess, up to 3 times off: exp(sqrt(ln(3.2)^2 + ln(3)^2))."""
GUESSED_WATTS_PER_THREAD: Final = 4.0
"""Where the CPU is not in the table. The table's own span is 1.2 to 12 W per thread."""
MEMORY_WATTS_PER_GB: Final = 0.3
MEMORY_LOWER_WATTS_PER_GB: Final = 0.2
MEMORY_UPPER_WATTS_PER_GB: Final = 0.54


@dataclass(frozen=True)
class Tdp:
    """The thermal design power that our hardware threads share in, and where the figure comes from."""

    watts: float
    """Of the threads that this process may use."""
    threads: float
    """That this process may use."""
    basis: str
    """One line for people: the CPU, the year, the source, or that it is a guess."""
    is_guess: bool

    @property
    def band(self) -> float:
        """Factor either way."""
        return GUESS_BAND if self.is_guess else BAND


@dataclass(frozen=True)
class _Row:
    model: str
    watts: float
    threads: int
    year: int
    source: str


def look_up(model: str | None, threads: float, watts: float | None = None, package_threads: int | None = None) -> Tdp:
    """The TDP behind `threads` of a CPU: what the user gave, else the table's, else a guess that says so."""
    if watts is not None:
        whole = package_threads or os.cpu_count() or 1
        return Tdp(watts * threads / whole, threads, f"{watts:g} W for {whole} threads, as set in the study", False)
    row = _row(model or "")
    if row is None:
        guess = GUESSED_WATTS_PER_THREAD
        basis = f"'{model or 'unknown CPU'}' is not in the table: {guess:g} W per hardware thread is a guess"
        return Tdp(guess * threads, threads, basis, True)
    basis = f"{row.model}: {row.watts:g} W for {row.threads} threads ({row.source}, {row.year})"
    return Tdp(row.watts * threads / row.threads, threads, basis, False)


def table() -> list[_Row]:
    """Every CPU whose TDP we know."""
    import csv
    from importlib.resources import files

    with files("leanwatt").joinpath("tables/tdp.csv").open(encoding="utf-8") as file:
        return [
            _Row(row["model"], float(row["watts"]), int(row["threads"]), int(row["year"]), row["source"])
            for row in csv.DictReader(file)
        ]


def _row(model: str) -> _Row | None:
    """The row whose words stand side by side in the kernel's name of the CPU; the longest, if several do."""
    words = f" {' '.join(_words(model))} "
    fitting = [row for row in table() if f" {' '.join(_words(row.model))} " in words]
    return max(fitting, key=lambda row: len(row.model), default=None)


def _words(model: str) -> list[str]:
    """`Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz` -> intel xeon e5-2680 v4 ..."""
    bare = re.sub(r"\((?:r|tm)\)|\bcpu\b|@", " ", model.lower())
    return bare.split()


@final
class CpuShareSource:
    """The estimate as running totals, to be read alone or beside sensors."""

    of_process = True

    def __init__(self, tdp: Tdp, *, with_package: bool = True) -> None:
        self._tdp = tdp
        self._with_package = with_package
        # Ranks of one node share its idle power: the first answers for it.
        self._idle_share = IDLE_SHARE if local_rank() == 0 else 0.0
        self._memory_gb = (memory_bytes() or 0) / 1e9 if local_rank() == 0 else 0.0
        self._began: float | None = None
        self._cpu_began = own_cpu_seconds()
        self._seconds = 0.0
        self._cpu_seconds = 0.0
        self._ticks = 0

    def tick(self, now: float, stopped: bool) -> None:
        """Take the time and our CPU time. While the process is stopped, idle power goes on and CPU time does not."""
        self._ticks += 1
        self._began = now if self._began is None else self._began
        self._seconds = now - self._began
        self._cpu_seconds = own_cpu_seconds() - self._cpu_began

    def slow_tick(self, now: float) -> None:
        """Nothing here is dear."""

    def counters(self) -> Mapping[str, Counter]:
        """The totals, by device: `package` unless a sensor has it, and `memory` where its size is known."""
        found: dict[str, Counter] = {}
        if self._with_package:
            busy = self._cpu_seconds / self._tdp.threads
            joules = self._tdp.watts * (self._idle_share * self._seconds + BUSY_SHARE * busy)
            found["package"] = self._counter("package", joules, joules / self._tdp.band, joules * self._tdp.band)
        if self._memory_gb:
            size = self._memory_gb * self._seconds
            watts = (MEMORY_WATTS_PER_GB, MEMORY_LOWER_WATTS_PER_GB, MEMORY_UPPER_WATTS_PER_GB)
            found["memory"] = self._counter("memory", *(size * each for each in watts))
        return found

    def close(self) -> None:
        """Nothing is held."""

    def _counter(self, scope: Scope, joules: float, lower: float, upper: float) -> Counter:
        flags = {"tdp_guessed": self._ticks} if self._tdp.is_guess and scope == "package" else {}
        return Counter(joules, lower, upper, Provenance.ESTIMATED, "estimate", scope, self._seconds, flags=flags)
