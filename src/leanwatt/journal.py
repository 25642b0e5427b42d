"""A journal of open windows, so that a killed job still tells what it spent: at most one heartbeat is lost.

One JSON object a line: `begin`, `beat` (twice a second) and `end`, each with the measurement so far. A journal that
cannot be written never stops the run: the window is flagged `journal_lost`.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, final

from leanwatt.measurement import Energy, Measurement, Provenance, Reading, worst

BEAT_SECONDS: Final = 0.5
"""A kill loses at most one: half of what may be lost, so that a beat that comes late is still in time."""


@final
class Window:
    """An open window; `measurement` is there once it is closed."""

    def __init__(self, stage: str, begin: Reading) -> None:
        self.stage = stage
        self.begin = begin
        self.measurement: Measurement | None = None


@dataclass
class _Journal:
    path: Path | None
    key: str
    is_lost: bool = False

    def write(self, event: str, measurement: Measurement, *, to_disk: bool = False) -> None:
        """One line, whole or not at all as far as other writers can see; an error is remembered, not raised."""
        if self.path is None:
            return
        line = json.dumps({"event": event, "key": self.key, "measurement": asdict(measurement)}) + "\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(line.encode())
                if to_disk:
                    os.fsync(file.fileno())
        except OSError:
            self.is_lost = True


@contextmanager
def window(
    read: Callable[[], Reading], stage: str, path: Path | None, beat_seconds: float = BEAT_SECONDS
) -> Iterator[Window]:
    """Weigh what happens inside, and write it to the journal as it goes. An exception closes the window too.

    Heartbeats need a meter that can be glanced at (`read.glance`); a recorded run, for one, cannot be.
    No path, no journal.
    """
    opened = Window(stage, read())
    journal = _Journal(path, f"{os.getpid()}-{opened.begin.at_seconds:.6f}")
    journal.write("begin", Measurement.between(stage, opened.begin, opened.begin))
    try:
        with _beating(journal, opened, getattr(read, "glance", None), beat_seconds):
            yield opened
    finally:
        measurement = Measurement.between(stage, opened.begin, read())
        journal.write("end", measurement, to_disk=True)
        lost = (*measurement.flags, "journal_lost") if journal.is_lost else measurement.flags
        opened.measurement = replace(measurement, flags=lost)


@contextmanager
def _beating(
    journal: _Journal, opened: Window, glance: Callable[[], Reading] | None, beat_seconds: float
) -> Iterator[None]:
    """Heartbeats on a thread of their own, as long as the context lasts."""
    if glance is None:
        yield
        return
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(beat_seconds):
            journal.write("beat", Measurement.between(opened.stage, opened.begin, glance()))

    thread = threading.Thread(target=beat, name="leanwatt-journal", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def spent(path: Path) -> list[Measurement]:
    """What each window of a journal spent.

    One that was never closed is known up to its last heartbeat: a lower bound, flagged `killed`. Lines that are cut
    off or garbled are passed over. No journal, no windows.
    """
    latest = {entry["key"]: entry for entry in _entries(path)}
    found = [(entry["event"] == "end", _measurement(entry["measurement"])) for entry in latest.values()]
    return [measurement if is_closed else _incomplete(measurement) for is_closed, measurement in found]


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and {"event", "key", "measurement"} <= entry.keys():
            yield entry


def _measurement(fields: Mapping[str, Any]) -> Measurement:
    devices = {name: _energy(each) for name, each in fields["devices"].items()}
    return Measurement(**{**fields, "devices": devices, "flags": tuple(fields["flags"])})


def _energy(fields: Mapping[str, Any]) -> Energy:
    return Energy(**{**fields, "provenance": Provenance(fields["provenance"]), "flags": tuple(fields["flags"])})


def _incomplete(measurement: Measurement) -> Measurement:
    """The end was not seen: whatever was measured is a lower bound, and no upper one is known."""
    devices = {
        name: energy if energy.joules is None else replace(
            energy, upper=None, provenance=worst([energy.provenance, Provenance.INCOMPLETE])
        )
        for name, energy in measurement.devices.items()
    }  # fmt: skip
    return replace(measurement, devices=devices, flags=(*measurement.flags, "killed"))
