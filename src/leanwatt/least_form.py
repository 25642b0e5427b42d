"""The other form of the score, phi = least joules of the table / own joules, and whether one variant decides it."""

from collections.abc import Sequence
from dataclasses import replace

from leanwatt.ranking import Entry, Spending


def with_least_form(entries: Sequence[Entry], unit: str, weight: float) -> list[Entry]:
    """The entries with `phi_least` and `r_least`; unchanged where they have no R."""
    scores = _scores(entries, unit, weight)
    least = _least([entry for entry in entries if entry.r is not None], unit)
    return [_filled(entry, least, scores[entry.label], unit) if entry.r is not None else entry for entry in entries]


def winner(entries: Sequence[Entry]) -> str | None:
    """Highest `r_least`; None where no entry has one."""
    return _highest({entry.label: entry.r_least for entry in entries if entry.r_least is not None})


def turned_by(entries: Sequence[Entry], unit: str, weight: float) -> tuple[str, ...]:
    """Which entries, left out, would make another one win: then the winner hangs on who else is in the table."""
    first = _highest(_scores(entries, unit, weight))
    return tuple(
        entry.label
        for entry in entries
        if entry.r is not None
        and entry.label != first
        and _highest(_scores([other for other in entries if other is not entry], unit, weight)) != first
    )


def _highest(scores: dict[str, float]) -> str | None:
    return min(scores, key=lambda label: (-scores[label], label), default=None)


def _scores(entries: Sequence[Entry], unit: str, weight: float) -> dict[str, float]:
    """Label -> R in this form, mean over tasks."""
    whole = [entry for entry in entries if entry.r is not None]
    least = _least(whole, unit)
    return {entry.label: _score(entry, least, unit, weight) for entry in whole}


def _score(entry: Entry, least: dict[str, float], unit: str, weight: float) -> float:
    each = [
        weight * least[task] / _cost(result.spending, unit) + (1 - weight) * result.quality.value
        for task, result in entry.tasks.items()
    ]
    return sum(each) / len(each)


def _least(entries: Sequence[Entry], unit: str) -> dict[str, float]:
    tasks = entries[0].tasks if entries else {}
    return {task: min(_cost(entry.tasks[task].spending, unit) for entry in entries) for task in tasks}


def _cost(spending: Spending | None, unit: str) -> float:
    figure = None if spending is None else spending.joules if unit == "joules" else spending.cpu_seconds
    if figure is None:
        raise ValueError("an entry with R has a cost on every task.")
    return figure.value


def _filled(entry: Entry, least: dict[str, float], score: float, unit: str) -> Entry:
    tasks = {
        name: replace(result, phi_least=least[name] / _cost(result.spending, unit))
        for name, result in entry.tasks.items()
    }
    return replace(entry, tasks=tasks, r_least=score)
