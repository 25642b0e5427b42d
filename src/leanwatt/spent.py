"""What a training spends while it runs: what the progress shows, and the curve of loss against joules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from leanwatt.curve import Curve, Point
from leanwatt.measurement import Measurement, Provenance, Reading, worst


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


class Track:
    """Follows one training on an open meter, over kills; without a meter it follows nothing."""

    def __init__(self, read: Callable[[], Reading] | None) -> None:
        self._read = read
        self._before = Spent()
        self._begin = read() if read else None
        self._points: list[Point] = []

    @property
    def spent(self) -> Spent | None:
        """Until now; None without a meter."""
        if self._read is None or self._begin is None:
            return None
        return self._before.plus(Measurement.between("finetune", self._begin, self._read()))

    def note(self, step: int, tokens: int, loss: float | None) -> None:
        """A look at the validation loss."""
        spent = self.spent
        if spent is not None and loss is not None:
            self._points.append(Point(step, tokens, spent.cpu_seconds, spent.joules, loss))

    @property
    def curve(self) -> Curve | None:
        """All looks; None without a meter or without validation examples."""
        spent = self.spent
        if spent is None or not self._points:
            return None
        return Curve(tuple(self._points), spent.provenance)

    def kept(self) -> dict[str, Any]:
        """For a checkpoint."""
        spent = self.spent
        return {"points": [asdict(point) for point in self._points], "spent": None if spent is None else asdict(spent)}

    def go_on(self, kept: Mapping[str, Any]) -> None:
        """From a checkpoint: what was spent before counts too."""
        self._points = [Point(**each) for each in kept["points"]]
        if kept["spent"] is not None:
            self._before = Spent(**kept["spent"])
