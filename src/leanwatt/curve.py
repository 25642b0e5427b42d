"""How far a fine-tuning had come after how much work: validation loss against joules, kept beside the model."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from leanwatt.cache import CURVE
from leanwatt.errors import StoreError
from leanwatt.measurement import Measurement, Provenance, Reading, worst

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Point:
    """One look at the validation loss."""

    step: int
    """Optimizer steps so far; 0 before the first."""
    tokens: int
    """Read in training so far."""
    cpu_seconds: float
    """Spent since training began, looks at the validation loss included."""
    joules: float | None
    """The same, gross, of all devices that were read; None where unknown."""
    validation_loss: float
    """Nats per answer token."""


@dataclass(frozen=True)
class Curve:
    """The looks of one fine-tuning, oldest first."""

    points: tuple[Point, ...]
    provenance: str = "absent"
    """Where the joules come from: see measurement.Provenance."""

    def save(self, folder: Path) -> None:
        """Write `curve.json`."""
        text = json.dumps({"schema": SCHEMA_VERSION, **asdict(self)}, indent=1)
        (folder / CURVE).write_text(text + "\n", encoding="utf-8")

    @property
    def least_loss(self) -> float:
        """The best that was seen."""
        return min(point.validation_loss for point in self.points)

    def cost_to(self, loss: float, unit: Literal["joules", "cpu_seconds"]) -> float | None:
        """What it took to come down to `loss`, on a straight line between two looks; None if never, or unknown."""
        before: Point | None = None
        for point in self.points:
            if point.validation_loss <= loss:
                return _between(before, point, loss, unit)
            before = point
        return None


def read(folder: Path) -> Curve | None:
    """The curve beside a model; None where there is none. Raises StoreError for one that cannot be read."""
    from pydantic import TypeAdapter, ValidationError

    path = folder / CURVE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("schema") > SCHEMA_VERSION:
            raise StoreError(f"{path}: was written by a newer version. Update leanwatt.")
        return TypeAdapter(Curve).validate_python(found)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, ValidationError) as error:
        raise StoreError(f"{path}: is not the curve of a fine-tuning ({error}). Make the variant anew.") from error


def _between(before: Point | None, after: Point, loss: float, unit: Literal["joules", "cpu_seconds"]) -> float | None:
    end: float | None = getattr(after, unit)
    if before is None or end is None:
        return end
    begin: float | None = getattr(before, unit)
    fallen = before.validation_loss - after.validation_loss
    return None if begin is None else begin + (end - begin) * (before.validation_loss - loss) / fallen


@dataclass(frozen=True)
class Spent:
    """By a training so far; what a killed process spent after its last checkpoint is not in it."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    joules: float | None = None
    """None where unknown."""
    provenance: str = str(Provenance.ABSENT)

    def plus(self, more: Measurement) -> "Spent":
        """Both together; joules are known only where both parts' are."""
        energy = more.total
        known = energy.joules is not None and (self.joules is not None or self.seconds == 0)
        both = [energy.provenance, *([Provenance(self.provenance)] if self.seconds else [])]
        return Spent(
            self.seconds + more.seconds,
            self.cpu_seconds + more.cpu_seconds,
            (self.joules or 0.0) + (energy.joules or 0.0) if known else None,
            str(worst(both)) if known else str(Provenance.ABSENT),
        )


class Recorder:
    """Collects the points of a curve while a training runs; without a meter there are none."""

    def __init__(self, read: Callable[[], Reading] | None) -> None:
        self._points: list[Point] = []
        self._read = read
        self._before = Spent()
        self._begin = read() if read else None

    @property
    def spent(self) -> Spent | None:
        """Until now; None without a meter."""
        if self._read is None or self._begin is None:
            return None
        return self._before.plus(Measurement.between("finetune", self._begin, self._read()))

    def note(self, step: int, tokens: int, loss: float | None) -> None:
        """One more look; nothing without a validation loss."""
        spent = self.spent
        if spent is not None and loss is not None:
            # Nothing was spent before the first look: no reading moves in no time.
            joules = 0.0 if not self._points and step == 0 and spent.joules is None else spent.joules
            self._points.append(Point(step, tokens, spent.cpu_seconds, joules, loss))

    @property
    def curve(self) -> Curve:
        """What was collected."""
        spent = self.spent
        return Curve(tuple(self._points), spent.provenance if spent else str(Provenance.ABSENT))

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        spent = self.spent
        return {"points": [asdict(point) for point in self._points], "spent": None if spent is None else asdict(spent)}

    def go_on(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint: what was spent before counts too."""
        self._points = [Point(**each) for each in state["points"]]
        if state["spent"] is not None:
            self._before = Spent(**state["spent"])
