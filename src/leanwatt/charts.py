"""The plots of a report, as plotly figures: plain data that a page draws in its own colours."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from leanwatt.compare import on_front
from leanwatt.ranking import Entry, Figure, Ranking, TaskResult
from leanwatt.verdict import short_names, shortened

COLOURS = ("#3b7dd8", "#d9722e", "#2f9e6e", "#b4559f", "#8a7a1f", "#5a6b7b", "#c2453f", "#3fa7b5")
"""Readable on white and on near-black."""
TICKETS = 1000
"""Whose answering stands beside what making took."""
LONGEST_NAME = 26
"""Of a bar: longer ones would leave no room for it on a phone."""
PLACES = ("top right", "bottom left", "top left", "bottom right")
"""Of numbers beside points, in turn, so that neighbours' numbers stay apart."""

Plot = Mapping[str, Any]
"""`data` and `layout`, as plotly.js takes them."""


def front(ranking: Ranking) -> dict[str, Plot]:
    """By task: cost of an answer against quality, both with intervals, and the line of those that nobody beats."""
    tasks = dict.fromkeys(task for entry in ranking.entries for task in entry.tasks)
    found = {task: _front(ranking, task) for task in tasks}
    return {task: plot for task, plot in found.items() if plot["data"]}


def _front(ranking: Ranking, task: str) -> Plot:
    names = short_names(ranking)
    held = [(e, e.tasks[task], cost) for e in ranking.entries if (cost := _cost(ranking, e, task)) is not None]
    best = on_front({entry.label: (cost.value, result.quality.value) for entry, result, cost in held})
    line = sorted((cost.value, result.quality.value) for entry, result, cost in held if entry.label in best)
    data = [_point(ranking, names, each) for each in sorted(held, key=lambda each: _is_marked(ranking, each[0]))]
    if len(line) > 1:
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [x for x, _ in line],
                "y": [y for _, y in line],
                "line": {"dash": "dot", "width": 1.5, "color": COLOURS[5], "shape": "hv"},
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
    metric = held[0][1].metric if held else ""
    return {"data": data, "layout": _layout(task, f"{ranking.scale.symbol} per answer", metric, logarithmic=True)}


def _is_marked(ranking: Ranking, entry: Entry) -> bool:
    """Drawn last, on top of the others."""
    spot = ranking.sweet_spot.label if ranking.sweet_spot else None
    return entry.label in (spot, ranking.reference)


def _cost(ranking: Ranking, entry: Entry, task: str) -> Figure | None:
    spending = entry.tasks[task].spending if task in entry.tasks else None
    if spending is None:
        return None
    return spending.joules if ranking.scale.unit == "joules" else spending.cpu_seconds


def _point(ranking: Ranking, names: Mapping[str, str], held: tuple[Entry, TaskResult, Figure]) -> Plot:
    entry, result, cost = held
    spot = ranking.sweet_spot is not None and ranking.sweet_spot.label == entry.label
    is_reference = entry.label == ranking.reference
    symbol = "star" if spot else "diamond" if is_reference else "square" if entry.is_baseline else "circle"
    colour = COLOURS[2] if spot else COLOURS[1] if is_reference else COLOURS[5] if entry.is_baseline else COLOURS[0]
    name, place = escape(names[entry.label]), 1 + ranking.entries.index(entry)
    told = f"{name}<br>%{{x:.3g}} {ranking.scale.symbol}, {escape(result.metric)} %{{y:.3f}}<extra></extra>"
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [cost.value],
        "y": [result.quality.value],
        "text": [str(place)],
        "textposition": PLACES[place % len(PLACES)],
        "textfont": {"size": 11},
        "error_x": _bars(cost),
        "error_y": _bars(result.quality),
        "marker": {"symbol": symbol, "size": 14 if spot else 10, "color": colour},
        "name": name,
        "hovertemplate": told,
        "showlegend": False,
        "cliponaxis": False,
    }


def _bars(figure: Figure) -> Plot:
    if figure.low is None or figure.high is None:
        return {"visible": False}
    above, below = figure.high - figure.value, figure.value - figure.low
    return {"type": "data", "symmetric": False, "array": [above], "arrayminus": [below], "thickness": 1, "width": 3}


def stages(ranking: Ranking) -> dict[str, Plot]:
    """What making each variant took, by stage, beside what answering a thousand tickets takes."""
    names = short_names(ranking)
    entries = [entry for entry in reversed(ranking.entries) if entry.making is not None]
    unit = "joules" if ranking.scale.unit == "joules" else "cpu_seconds"
    parts = list(dict.fromkeys(stage for entry in entries for stage in (entry.making.stages if entry.making else {})))
    labels = [f"{1 + ranking.entries.index(e)} {escape(shortened(names[e.label], LONGEST_NAME))}" for e in entries]
    data = [
        _bar(part, labels, [_stage(entry, part, unit) for entry in entries], place) for place, part in enumerate(parts)
    ]
    answering = [TICKETS * entry.cost.value if entry.cost else None for entry in entries]
    data.append(_bar(f"answering {TICKETS} tickets", labels, answering, len(parts)))
    layout = _layout("", f"{ranking.scale.symbol}", "")
    height = 140 + 34 * len(entries)
    legend = {"orientation": "h", "y": -0.25}
    return {"": {"data": data, "layout": {**layout, "barmode": "stack", "height": height, "legend": legend}}}


def _stage(entry: Entry, part: str, unit: str) -> float | None:
    return entry.making.stages.get(part, {}).get(unit) if entry.making else None


def _bar(name: str, labels: Sequence[str], values: Sequence[float | None], place: int) -> Plot:
    colour = COLOURS[place % len(COLOURS)]
    return {
        "type": "bar",
        "orientation": "h",
        "name": escape(name),
        "y": labels,
        "x": values,
        "marker": {"color": colour},
    }


def weights(ranking: Ranking) -> dict[str, Plot]:
    """R over all w; winners drawn bold and named."""
    names, winners = short_names(ranking), {segment.label for segment in ranking.winner_by_weight}
    data: list[Plot] = []
    for entry in ranking.entries:
        if entry.quality is None or entry.phi is None:
            continue
        wins = entry.label in winners
        line = {"width": 3 if wins else 1, "color": COLOURS[len(data) % len(COLOURS)] if wins else "#9aa3ad"}
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [0, 1],
                "y": [entry.quality, entry.phi],
                "line": line,
                "name": escape(names[entry.label]),
                "showlegend": wins,
            }
        )
    layout = _layout("", "w: weight of energy", "R")
    marks = [
        {
            "type": "line",
            "x0": s.begin,
            "x1": s.begin,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "line": {"dash": "dot", "width": 1, "color": "#9aa3ad"},
        }
        for s in ranking.winner_by_weight
        if s.begin > 0
    ]
    return {"": {"data": data, "layout": {**layout, "shapes": marks, "legend": {"orientation": "h", "y": -0.25}}}}


def _layout(title: str, across: str, up: str, *, logarithmic: bool = False) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": escape(across)}, "automargin": True}
    if logarithmic:
        axis |= {"type": "log", "dtick": "D2"}
    return {
        "title": {"text": escape(title), "font": {"size": 15}},
        "xaxis": axis,
        "yaxis": {"title": {"text": escape(up)}, "automargin": True},
        "margin": {"l": 48, "r": 24, "t": 40, "b": 48},
        "height": 420,
    }
