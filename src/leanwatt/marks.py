"""Where a plot's numbers stand, so that they can be read, and how its axis is marked."""

import math
from collections.abc import Sequence
from typing import Any, Final

PLACES: Final = {
    "top right": (1, 1),
    "top left": (-1, 1),
    "bottom right": (1, -1),
    "bottom left": (-1, -1),
    "top center": (0, 1),
    "bottom center": (0, -1),
    "middle right": (1.3, 0),
    "middle left": (-1.3, 0),
}
"""Of a number beside its point, as plotly names them, liked best first: steps across and up."""
SIZE: Final = (420.0, 260.0)
"""Of a plot in pixels, about: on a phone it is narrower, on paper wider."""
STEP: Final = 13.0
"""From a point to its number."""
APART: Final = 19.0
"""Between two numbers, which may have two digits."""
PREFIXES: Final = ((1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def free_places(points: Sequence[tuple[float, float]]) -> list[str]:
    """For each point, where its number hits no other point and no other number; x is drawn logarithmically."""
    spots = _pixels(points)
    taken: list[tuple[float, float]] = []
    found = []
    for own, (x, y) in enumerate(spots):
        others = [each for place, each in enumerate(spots) if place != own]
        around = {name: (x + STEP * right, y + STEP * up) for name, (right, up) in PLACES.items()}
        best = min(
            around, key=lambda name: _crowding(around[name], others, STEP) + _crowding(around[name], taken, APART)
        )
        taken.append(around[best])
        found.append(best)
    return found


def _pixels(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    across, up = [math.log10(x) for x, _ in points], [y for _, y in points]
    wide, high = max(across) - min(across) or 1.0, max(up) - min(up) or 1.0
    return [(SIZE[0] * x / wide, SIZE[1] * y / high) for x, y in zip(across, up, strict=True)]


def _crowding(place: tuple[float, float], others: Sequence[tuple[float, float]], room: float) -> float:
    """0 where nothing is near; rounded, so that the place liked best is taken among equals."""
    return round(sum(max(0.0, room - math.dist(place, other)) for other in others), 3)


def ticks(values: Sequence[float], unit: str) -> dict[str, Any]:
    """Of a logarithmic axis: whole decades, or 1, 2, 5 where there are few, written with a prefix."""
    low, high = math.log10(min(values)), math.log10(max(values))
    steps = (1.0,) if high - low > 2.5 else (1.0, 2.0, 5.0)
    marks = [step * 10.0**power for power in range(math.floor(low) - 1, math.ceil(high) + 1) for step in steps]
    pad = max(0.08, (high - low) * 0.05)
    return {
        "type": "log",
        "range": [low - pad, high + pad],
        "tickvals": marks,
        "ticktext": [with_prefix(mark, unit) for mark in marks],
    }


def with_prefix(value: float, unit: str) -> str:
    """`12.3 ms`, `4 kJ`."""
    size, prefix = next(((size, prefix) for size, prefix in PREFIXES if value >= 0.9995 * size), PREFIXES[-1])
    return f"{value / size:.3g} {prefix}{unit}"
