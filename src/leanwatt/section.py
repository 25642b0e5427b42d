"""A part of a report, before it is written as Markdown or HTML."""

import re
from dataclasses import dataclass
from typing import Literal

from leanwatt.ranking import Figure
from leanwatt.verdict import number

Chart = Literal["front", "stages", "weights", "prices", "risks"]


@dataclass(frozen=True)
class Grid:
    """A table; the first column names the row."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Fact:
    """One figure that is read at a glance."""

    value: str
    """As few words as can be: `2.2 times less`."""
    about: str
    """What it is of."""
    note: str = ""
    """What it lies between, and where it comes from."""


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    text: tuple[str, ...] = ()
    grid: Grid | None = None
    items: tuple[str, ...] = ()
    chart: Chart | None = None
    code: str = ""
    facts: tuple[Fact, ...] = ()
    task: str = ""
    """Whose chart it is, where a section stands for one task."""

    @property
    def key(self) -> str:
        """For links: `before-you-rely-on-it`."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def figure(value: Figure | None, digits: int = 3) -> str:
    """`0.900 (0.876 to 0.925)`, or a dash where it is unknown."""
    if value is None:
        return "-"
    if value.low is None or value.high is None:
        return f"{value.value:.{digits}g}"
    return f"{number(value.value)} ({number(value.low)} to {number(value.high)})"


def or_dash(value: float | None) -> str:
    """Three digits, or a dash where it is unknown."""
    return "-" if value is None else number(value)
