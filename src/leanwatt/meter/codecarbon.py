"""The meter of many papers, `codecarbon`, for comparison beside our own: its figures, our labels.

codecarbon does not say which of its figures are measured and which are guessed, so all of them are `estimated`, with
the band of the one public test against meters: up to 40 % off where it has sensors (arXiv 2509.22092), 0.26 to 1.47
times the truth where it has none (docs/energy.md); the wider is taken. Its share of memory is a model, apart as ever.
It asks no network here: the offline tracker, a country by name, no cloud look-up. Version 3.3.
"""

import contextlib
import importlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, final

from leanwatt.bill import JOULES_PER_KWH
from leanwatt.contracts import Meter
from leanwatt.errors import MissingExtraError
from leanwatt.measurement import Counter, Provenance, Scope
from leanwatt.meter._gpus import synchronize
from leanwatt.meter._reader import Reader, require_positive, sampling

LOWER: Final = 1 / 1.47
UPPER: Final = 1 / 0.26
PARTS: Final[Mapping[str, Scope]] = {"cpu": "package", "gpu": "gpu", "ram": "memory"}


@final
@dataclass(frozen=True)
class Codecarbon(Meter):
    """Joules as codecarbon tells them."""

    country: str = "FRA"
    """Three letters. codecarbon wants one for its carbon figure, which is not used; energy does not depend on it."""
    every_seconds: float = 1.0
    """How often it samples."""

    def __post_init__(self) -> None:
        require_positive(every_seconds=self.every_seconds)

    def open(self) -> AbstractContextManager[Reader]:
        """Start its tracker. Raises MissingExtraError without codecarbon."""
        return _opened(_tracker(self.country, self.every_seconds))


class _Totals:
    """Where codecarbon puts its totals each time it is flushed."""

    def __init__(self) -> None:
        self.kwh: dict[str, float] = {}

    def out(self, total: Any, _delta: Any) -> None:
        self.kwh = {part: float(getattr(total, f"{part}_energy")) for part in PARTS}

    live_out = out


@dataclass(frozen=True)
class _Tracker:
    tracker: Any
    totals: _Totals


def _tracker(country: str, every_seconds: float) -> _Tracker:
    totals = _Totals()
    # One of its dependencies prints to stdout as it is imported, where our commands write JSON.
    with contextlib.redirect_stdout(sys.stderr):
        tracker = _library().OfflineEmissionsTracker(
            country_iso_code=country,
            measure_power_secs=every_seconds,
            save_to_file=False,
            save_to_logger=True,
            logging_logger=totals,
            allow_multiple_runs=True,
            log_level="critical",
        )
    return _Tracker(tracker, totals)


def _library() -> Any:
    try:
        return importlib.import_module("codecarbon")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"meter: codecarbon needs '{error.name}'. Install it with: pip install codecarbon"
        ) from error


@contextlib.contextmanager
def _opened(opened: _Tracker) -> Iterator[Reader]:
    source = _Source(opened)

    def at_edges() -> None:
        synchronize()
        source.flush()

    opened.tracker.start()
    try:
        with sampling([source], hertz=1.0, at_edges=at_edges) as reader:
            yield reader
    finally:
        opened.tracker.stop()


@final
class _Source:
    """Its totals at the last flush: flushed at the edges of windows, since that takes milliseconds."""

    of_process = False

    def __init__(self, opened: _Tracker) -> None:
        self._opened = opened
        self._began = time.monotonic()
        self._seconds = 0.0
        self._lock = threading.Lock()

    def flush(self) -> None:
        """Make codecarbon sum up."""
        with self._lock:
            self._opened.tracker.flush()
            self._seconds = time.monotonic() - self._began

    def tick(self, now: float, stopped: bool) -> None:
        """Nothing: codecarbon has a thread of its own."""

    def slow_tick(self, now: float) -> None:
        """Nothing: codecarbon has a thread of its own."""

    def counters(self) -> Mapping[str, Counter]:
        return {_name(part): self._counter(part, kwh) for part, kwh in self._opened.totals.kwh.items() if kwh > 0}

    def close(self) -> None:
        """Stopped by whoever started it."""

    def _counter(self, part: str, kwh: float) -> Counter:
        joules = kwh * JOULES_PER_KWH
        return Counter(
            joules, joules * LOWER, joules * UPPER, Provenance.ESTIMATED, "codecarbon", PARTS[part], self._seconds
        )


def _name(part: str) -> str:
    """All packages together, all GPUs together, the model of memory."""
    return {"cpu": "package", "gpu": "gpu", "ram": "memory"}[part]
