"""How far a fine-tuning had come after how much work: validation loss against joules, kept beside the model."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from leanwatt.errors import StoreError

FILE = "curve.json"
"""In the folder of the model that a fine-tuning made."""
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
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

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

    path = folder / FILE
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
