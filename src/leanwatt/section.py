"""A part of a report, before it is written as Markdown or HTML."""

from dataclasses import dataclass
from typing import Literal

Chart = Literal["front", "stages", "weights"]


@dataclass(frozen=True)
class Grid:
    """A table; the first column names the row."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    text: tuple[str, ...] = ()
    grid: Grid | None = None
    items: tuple[str, ...] = ()
    chart: Chart | None = None
    code: str = ""
