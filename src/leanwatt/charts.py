"""The plots of a report, as plotly figures: plain data that a page draws in its own colours."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from leanwatt.compare import on_front
from leanwatt.marks import free_places, ticks, with_prefix
from leanwatt.ranking import Entry, Figure, Ranking, Segment, TaskResult
from leanwatt.verdict import number, short_names

COLOURS = ("#3b7dd8", "#d9722e", "#2f9e6e", "#b4559f", "#8a7a1f", "#5a6b7b", "#c2453f", "#3fa7b5")
"""Readable on white and on near-black."""
GREY = "#9aa3ad"
TICKETS = 1000
"""Whose answering stands beside what making took."""

Plot = Mapping[str, Any]
"""`data` and `layout`, as plotly.js takes them; `about` in words; `strip`: named bands above the plot, from 0 to 1;
`rows`: names along the side; `zoom`: ranges without the baselines. The page fits names to its width."""


def front(ranking: Ranking, task: str = "") -> dict[str, Plot]:
    """By task: cost of an answer against quality, both with intervals, and the line of those that nobody beats."""
    tasks = dict.fromkeys(name for entry in ranking.entries for name in entry.tasks)
    found = {name: _front(ranking, name) for name in tasks if task in ("", name)}
    return {name: plot for name, plot in found.items() if plot["data"]}


Held = tuple[Entry, TaskResult, Figure]


def _front(ranking: Ranking, task: str) -> Plot:
    names = short_names(ranking)
    held = [(e, e.tasks[task], cost) for e in ranking.entries if (cost := _cost(ranking, e, task)) is not None]
    if not held:
        return {"data": [], "layout": {}}
    best = on_front({entry.label: (cost.value, result.quality.value) for entry, result, cost in held})
    line = sorted((cost.value, result.quality.value) for entry, result, cost in held if entry.label in best)
    held.sort(key=lambda each: _is_marked(ranking, each[0]))
    spots = free_places([(cost.value, result.quality.value) for _, result, cost in held])
    data: list[Plot] = [
        _point(ranking, names, each) | {"textposition": spot} for each, spot in zip(held, spots, strict=True)
    ]
    if len(line) > 1:
        data.insert(0, _stairs(line))
    unit, metric = ranking.scale.symbol, held[0][1].metric
    said = "energy per answer" if unit == "J" else "CPU time per answer"
    layout = _layout(said, metric) | {"height": 360}
    layout["xaxis"] |= ticks(_drawable(cost for _, _, cost in held), "J" if unit == "J" else "s")
    words = f"{task}: {said} across, {metric} up, both with intervals; {_in_words(held, names, unit)}"
    return {"data": data, "layout": layout, "about": words, "zoom": _zoom(ranking, held)}


def _bounds(figure: Figure) -> tuple[float, float, float]:
    low, high = figure.low, figure.high
    return figure.value, figure.value if low is None else low, figure.value if high is None else high


def _drawable(costs: Iterable[Figure]) -> list[float]:
    """What a logarithmic axis has room for."""
    return [bound for cost in costs for bound in _bounds(cost) if bound > 0]


def _in_words(held: Sequence[Held], names: Mapping[str, str], unit: str) -> str:
    """For those who cannot see it."""
    ordered = sorted(held, key=lambda each: each[2].value)
    return "; ".join(f"{names[e.label]} {number(c.value)} {unit}, {r.quality.value:.3f}" for e, r, c in ordered)


def _zoom(ranking: Ranking, held: Sequence[Held]) -> Plot | None:
    """The ranges that hold the language models alone, and where their numbers stand; None where that is nothing new."""
    numbered = [(1 + ranking.entries.index(entry), entry) for entry, _, _ in held]
    models = [(result, cost) for entry, result, cost in held if not entry.is_baseline]
    if len(models) < 2 or len(models) == len(held):
        return None
    across = [math.log10(bound) for bound in _drawable(cost for _, cost in models)]
    up = [bound for result, _ in models for bound in _bounds(result.quality)]
    wide, high = (max(across) - min(across)) * 0.08, (max(up) - min(up)) * 0.12
    places = free_places([(cost.value, result.quality.value) for result, cost in models])
    return {
        "x": [min(across) - wide, max(across) + wide],
        "y": [min(up) - high, max(up) + high],
        "places": dict(zip([str(place) for place, e in numbered if not e.is_baseline], places, strict=True)),
    }


def _stairs(line: Sequence[tuple[float, float]]) -> Plot:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _ in line],
        "y": [y for _, y in line],
        "line": {"dash": "dot", "width": 1.5, "color": COLOURS[5], "shape": "hv"},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _is_marked(ranking: Ranking, entry: Entry) -> bool:
    """Drawn last, on top of the others."""
    spot = ranking.sweet_spot.label if ranking.sweet_spot else None
    return entry.label in (spot, ranking.reference)


def _cost(ranking: Ranking, entry: Entry, task: str) -> Figure | None:
    spending = entry.tasks[task].spending if task in entry.tasks else None
    if spending is None:
        return None
    cost = spending.joules if ranking.scale.unit == "joules" else spending.cpu_seconds
    return cost if cost and cost.value > 0 else None


SHAPES = {"recommended": ("star", COLOURS[2], "★"), "reference": ("diamond", COLOURS[1], "◆"),
          "no language model": ("square", COLOURS[5], "■"), "variant": ("circle", COLOURS[0], "●")}  # fmt: skip
"""What stands for whom: in plotly, its colour, and as a letter."""


def shape(ranking: Ranking, entry: Entry) -> str:
    """The key of SHAPES."""
    if ranking.sweet_spot is not None and ranking.sweet_spot.label == entry.label:
        return "recommended"
    if entry.label == ranking.reference:
        return "reference"
    return "no language model" if entry.is_baseline else "variant"


def _point(ranking: Ranking, names: Mapping[str, str], held: Held) -> dict[str, Any]:
    entry, result, cost = held
    kind = shape(ranking, entry)
    symbol, colour, _ = SHAPES[kind]
    said = escape(f"{1 + ranking.entries.index(entry)} {names[entry.label]}")
    unit = "J" if ranking.scale.symbol == "J" else "s"
    lines = [f"<b>{said}</b>", _between(cost, unit), f"{escape(result.metric)} {_between(result.quality, '')}"]
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [cost.value],
        "y": [result.quality.value],
        "text": [str(1 + ranking.entries.index(entry))],
        "textfont": {"size": 12},
        "error_x": _bars(cost),
        "error_y": _bars(result.quality),
        "marker": {"symbol": symbol, "size": 15 if kind == "recommended" else 11, "color": colour},
        "name": said,
        "hovertemplate": f"{'<br>'.join(lines)}<extra></extra>",
        "showlegend": False,
        "cliponaxis": False,
    }


def _between(figure: Figure, unit: str) -> str:
    """`12 ms (8.7 ms to 19.7 ms)`, or plain numbers."""
    said = [with_prefix(each, unit) if unit else f"{each:.3f}" for each in _bounds(figure)]
    return said[0] if figure.low is None else f"{said[0]} ({said[1]} to {said[2]})"


def _bars(figure: Figure) -> Plot:
    if figure.low is None or figure.high is None:
        return {"visible": False}
    above, below = figure.high - figure.value, figure.value - figure.low
    return {"type": "data", "symmetric": False, "array": [above], "arrayminus": [below], "thickness": 1, "width": 3}


def stages(ranking: Ranking, task: str = "") -> dict[str, Plot]:
    """What making each variant took, by stage, beside what answering a thousand tickets takes."""
    names = short_names(ranking)
    entries = [entry for entry in reversed(ranking.entries) if entry.making is not None]
    unit = "joules" if ranking.scale.unit == "joules" else "cpu_seconds"
    parts = list(dict.fromkeys(stage for entry in entries for stage in (entry.making.stages if entry.making else {})))
    labels = [str(1 + ranking.entries.index(e)) for e in entries]
    data = [
        _bar(part, labels, [_stage(entry, part, unit) for entry in entries], place) for place, part in enumerate(parts)
    ]
    answering = [TICKETS * entry.cost.value if entry.cost else None for entry in entries]
    data.append(_bar(f"answering {TICKETS} tickets", labels, answering, len(parts)))
    layout = _layout("energy, J" if ranking.scale.unit == "joules" else "CPU time, seconds", "")
    more = {"barmode": "stack", "height": 150 + 34 * len(entries), "legend": _LEGEND}
    layout["yaxis"] |= {"type": "category"}
    said = f"Bars, one per variant: {', '.join(parts)}, and answering {TICKETS} tickets; the tables have the figures."
    rows = [{"number": label, "name": names[e.label]} for label, e in zip(labels, entries, strict=True)]
    return {"": {"data": data, "layout": layout | more, "about": said, "rows": rows}}


_LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}


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


def weights(ranking: Ranking, task: str = "") -> dict[str, Plot]:
    """R over all w; winners drawn bold, and named along the top where they win."""
    colours = _winners(ranking.winner_by_weight)
    held = [entry for entry in ranking.entries if entry.quality is not None and entry.phi is not None]
    held.sort(key=lambda entry: entry.label in colours)
    data = [_line(ranking, entry, [0, 1], [entry.quality, entry.phi], colours) for entry in held]
    layout = _layout("w: weight of energy against quality", "R")
    layout["xaxis"] |= {"range": [0, 1]}
    ends = [(each.begin, 1.0 if each.end is None else each.end) for each in ranking.winner_by_weight]
    said = _reign(ranking, ranking.winner_by_weight, "w")
    return {
        "": {"data": data, "layout": layout, "about": said, "strip": _strip(ranking, ranking.winner_by_weight, ends)}
    }


def _winners(segments: Sequence[Segment]) -> dict[str, str]:
    labels = dict.fromkeys(segment.label for segment in segments)
    return {label: COLOURS[place % len(COLOURS)] for place, label in enumerate(labels)}


def _line(
    ranking: Ranking, entry: Entry, x: Sequence[float], y: Sequence[float | None], colours: Mapping[str, str]
) -> Plot:
    name = escape(short_names(ranking)[entry.label])
    wins = entry.label in colours
    return {
        "type": "scatter",
        "mode": "lines" if len(x) == 2 else "lines+markers",
        "x": list(x),
        "y": list(y),
        "line": {"width": 2.5 if wins else 1, "color": colours.get(entry.label, GREY)},
        "name": name,
        "hovertemplate": f"{name}: %{{y:.3f}}<extra></extra>",
        "showlegend": wins and len(x) > 2,
    }


def _reign(ranking: Ranking, segments: Sequence[Segment], what: str) -> str:
    names = short_names(ranking)
    return "; ".join(f"from {what} {number(each.begin)}: {names[each.label]}" for each in segments)


def _strip(ranking: Ranking, segments: Sequence[Segment], ends: Sequence[tuple[float, float]]) -> list[Plot]:
    """Bands with the winner's name and number, from 0 to 1 along the axis."""
    names, colours = short_names(ranking), _winners(segments)
    places = {entry.label: place for place, entry in enumerate(ranking.entries, 1)}
    return [
        {
            "from": begin,
            "to": end,
            "number": str(places[each.label]),
            "name": names[each.label],
            "colour": colours[each.label],
        }
        for each, (begin, end) in zip(segments, ends, strict=True)
    ]


def prices(ranking: Ranking, task: str = "") -> dict[str, Plot]:
    """Who is cheapest in all, over the price of a wrong answer, on a logarithmic axis."""
    segments = ranking.winner_by_price
    inner = [each.begin for each in segments if each.begin > 0]
    if not inner:
        return {}
    low, high = math.log10(min(inner)) - 1, math.log10(max(inner)) + 1
    marks = [0.0, *((math.log10(each) - low) / (high - low) for each in inner), 1.0]
    unit = "kWh" if ranking.scale.unit == "joules" else "CPU-hours"
    layout = _layout(f"price of a wrong answer, {unit} (log scale)", "") | {"height": 128}
    shown = [f"{each:.1g}" for each in inner]
    layout["xaxis"] |= {"range": [0, 1], "tickvals": marks[1:-1], "ticktext": shown}
    layout["yaxis"] |= {"visible": False, "range": [0, 1]}
    ends = list(pairwise(marks))
    said = _reign(ranking, segments, unit)
    data = [{"type": "scatter", "x": [0, 1], "y": [0, 0], "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}]
    return {"": {"data": data, "layout": layout, "about": said, "strip": _strip(ranking, segments, ends)}}


def risks(ranking: Ranking, task: str) -> dict[str, Plot]:
    """Share of wrong answers over the share answered, the most confident first; one line per variant."""
    spot = ranking.sweet_spot.label if ranking.sweet_spot else ranking.reference
    held = [entry for entry in ranking.entries if task in entry.tasks and entry.tasks[task].risk]
    others = [c for c in COLOURS if c not in (COLOURS[1], COLOURS[2])]
    models = [entry.label for entry in held if not entry.is_baseline]
    colours = {label: others[place % len(others)] for place, label in enumerate(models)}
    colours |= {ranking.reference: COLOURS[1]} | {spot: COLOURS[2]}
    held.sort(key=lambda entry: _is_marked(ranking, entry))
    data = []
    for entry in held:
        risk = sorted((float(share), wrong) for share, wrong in entry.tasks[task].risk.items())
        data.append(_line(ranking, entry, [x for x, _ in risk], [y for _, y in risk], colours))
    layout = _layout("share answered, the most confident first", "share wrong") | {"legend": _LEGEND}
    for axis in ("xaxis", "yaxis"):
        layout[axis] |= {"tickformat": ".0%"}
    most = max((y for entry in held if entry.label in models for y in entry.tasks[task].risk.values()), default=None)
    layout["yaxis"] |= {"range": [0, 1.15 * most]} if most else {}
    said = "Lines, one per language model: what is wrong of what is answered; the table has the figures, baselines too."
    return {"": {"data": data, "layout": layout, "about": said}} if data else {}


def _layout(across: str, up: str) -> dict[str, Any]:
    return {
        "xaxis": {"title": {"text": escape(across)}, "automargin": True},
        "yaxis": {"title": {"text": escape(up)}, "automargin": True},
        "margin": {"l": 48, "r": 20, "t": 24, "b": 44},
        "height": 420,
    }
