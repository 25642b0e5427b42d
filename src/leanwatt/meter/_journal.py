"""A journal of open windows, so that a killed run still tells what it spent: at most one heartbeat is lost.

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
from leanwatt.meter._reader import Reader

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
    path: Path
    key: str
    is_lost: bool = False

    def write(self, event: str, measurement: Measurement, *, to_disk: bool = False) -> None:
        """One line, whole or not at all as far as other writers can see; an error is remembered, not raised."""
        line = json.dumps({"event": event, "key": self.key, "measurement": asdict(measurement)}) + "\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(line.encode())
                if to_disk:
                    os.fsync(file.fileno())
        except OSError:
            self.is_lost = True


@contextmanager
def window(read: Callable[[], Reading], stage: str, path: Path, beat_seconds: float = BEAT_SECONDS) -> Iterator[Window]:
    """Weigh what happens inside, and write it to the journal as it goes. An exception closes the window too."""
    opened = Window(stage, read())
    journal = _Journal(path, f"{os.getpid()}-{opened.begin.at_seconds:.6f}")
    journal.write("begin", Measurement.between(stage, opened.begin, opened.begin))
    glance = read.glance if isinstance(read, Reader) else read
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(beat_seconds):
            journal.write("beat", Measurement.between(stage, opened.begin, glance()))

    thread = threading.Thread(target=beat, name="leanwatt-journal", daemon=True)
    thread.start()
    try:
        yield opened
    finally:
        stop.set()
        thread.join()
        measurement = Measurement.between(stage, opened.begin, read())
        journal.write("end", measurement, to_disk=True)
        lost = (*measurement.flags, "journal_lost") if journal.is_lost else measurement.flags
        opened.measurement = replace(measurement, flags=lost)


def unclosed(path: Path) -> list[Measurement]:
    """What the windows that were never closed had spent by their last heartbeat: lower bounds, flagged `killed`.

    Lines that are cut off or garbled are passed over. No journal, no windows.
    """
    open_windows: dict[str, Measurement] = {}
    for entry in _entries(path):
        open_windows[entry["key"]] = _measurement(entry["measurement"])
        if entry["event"] == "end":
            del open_windows[entry["key"]]
    return [_incomplete(each) for each in open_windows.values()]


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
