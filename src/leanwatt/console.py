"""What is shown while something runs: one line that moves, on the error stream, and nothing where nobody looks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from leanwatt.bill import SECONDS_PER_HOUR
from leanwatt.contracts import Progress

QUIET = "LEANWATT_QUIET"
"""Set to 1 to show no progress bars."""


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """A bar for one piece of work; tell it a text and the share done."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    unseen = not console.is_terminal or os.environ.get(QUIET) == "1"
    columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn())
    with Bars(*columns, TextColumn("{task.fields[text]}"), console=console, transient=True, disable=unseen) as bars:
        line = bars.add_task(what[:48], total=1.0, text="")
        yield lambda text, share: bars.update(line, completed=share, text=text[:80])


def say(text: str) -> None:
    """A line of news on the error stream, set apart from the rest where the terminal can."""
    from rich.console import Console

    if os.environ.get(QUIET) != "1":
        Console(stderr=True, soft_wrap=True).print(text, style="dim cyan", markup=False, highlight=False)


def duration(seconds: float) -> str:
    """In the largest unit that fits."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / SECONDS_PER_HOUR:.1f} h"
