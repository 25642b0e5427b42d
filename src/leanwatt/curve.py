"""What a training learned for how many joules: validation loss along the way, and the cost of getting there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leanwatt.measurement import Measurement, Provenance, Reading, worst

FILE = "curve.json"


@dataclass(frozen=True)
class Spent:
    """By a training so far; what a killed process spent after its last checkpoint is not in it."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    joules: float | None = None
    """None where unknown."""
    provenance: str = str(Provenance.ABSENT)

    def plus(self, more: Measurement) -> Spent:
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


@dataclass(frozen=True)
class Point:
    """One look at the validation loss."""

    step: int
    """Optimizer steps done; 0 before the first."""
    tokens: int
    validation_loss: float | None
    """Mean per answer token, natural logarithm; None without validation examples."""
    spent: Spent | None
    """Since the training began, looks included; None without a meter."""


class Curve:
    """Collects points while a training runs."""

    def __init__(self, read: Callable[[], Reading] | None) -> None:
        self.points: list[Point] = []
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
        """One more point."""
        self.points.append(Point(step, tokens, loss, self.spent))

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        spent = self.spent
        return {"points": [asdict(point) for point in self.points], "spent": None if spent is None else asdict(spent)}

    def go_on(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint: what was spent before counts too."""
        self.points = [_point(each) for each in state["points"]]
        if state["spent"] is not None:
            self._before = Spent(**state["spent"])

    def save(self, folder: Path) -> None:
        """As a list of points."""
        text = json.dumps([asdict(point) for point in self.points], indent=1)
        (folder / FILE).write_text(text, encoding="utf-8")


def read_curve(folder: Path) -> list[Point]:
    """The curve beside a saved model; empty where none was kept."""
    path = folder / FILE
    return [_point(each) for each in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []


def until(points: Iterable[Point], loss: float) -> Point | None:
    """The first point that is at least as good as `loss`: what it took to get there; None if it never was."""
    return next((p for p in points if p.validation_loss is not None and p.validation_loss <= loss), None)


def _point(data: Mapping[str, Any]) -> Point:
    spent = data["spent"]
    return Point(data["step"], data["tokens"], data["validation_loss"], None if spent is None else Spent(**spent))
