"""A recorded run, read again: for tests, and to look into a measurement that was made elsewhere.

The file holds one reading a line, as JSON; `record` writes it. Each call gives the next reading.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from leanwatt.contracts import Meter
from leanwatt.errors import MeterError
from leanwatt.measurement import Counter, Provenance, Reading


@final
@dataclass(frozen=True)
class Replay(Meter):
    """Readings from a file, in order."""

    path: str
    """The recorded run: one reading a line."""

    def open(self) -> AbstractContextManager[Callable[[], Reading]]:
        """Start from the first reading. Raises MeterError for a file that cannot be read, or once it is at its end."""
        return _replaying(self.path, _readings(Path(self.path)))


def record(path: Path, readings: Iterable[Reading]) -> None:
    """Write a run that `replay` can read."""
    path.write_text("".join(json.dumps(asdict(reading)) + "\n" for reading in readings), encoding="utf-8")


@contextmanager
def _replaying(path: str, readings: list[Reading]) -> Iterator[Callable[[], Reading]]:
    left = iter(readings)

    def read() -> Reading:
        reading = next(left, None)
        if reading is None:
            raise MeterError(f"{path}: holds {len(readings)} readings, and one more was asked. Record a longer run.")
        return reading

    yield read


def _readings(path: Path) -> list[Reading]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MeterError(f"{path}: cannot be read ({error.strerror}). Give the path of a recorded run.") from error
    return [_reading(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _reading(path: Path, number: int, line: str) -> Reading:
    try:
        fields: dict[str, Any] = json.loads(line)
        counters = {name: _counter(each) for name, each in fields.pop("devices").items()}
        return Reading(**fields, devices=counters)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MeterError(f"{path}: line {number} is no reading ({error!r}). Write the file with `record`.") from error


def _counter(fields: dict[str, Any]) -> Counter:
    return Counter(**{**fields, "provenance": Provenance(fields["provenance"])})
