"""A report as one HTML file that opens from disk: styles, data and the plotting library are all inside it."""

import gzip
import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

from leanwatt import charts
from leanwatt.charts import SHAPES, Plot
from leanwatt.gist import badges
from leanwatt.ranking import Ranking
from leanwatt.section import Fact, Grid, Section
from leanwatt.verdict import short_names

NUMBER = re.compile(r"[+-]?\d[\d.,]*(e[+-]?\d+)?( ?%)?( (to|\().*)?")
"""A cell with a figure, and perhaps with what it lies between."""
BAND = re.compile(r"(.*\S) (\((?:.+ to .+|one round.*)\))")
"""A figure and what it lies between."""
WIDE = 5
"""A table with more columns puts intervals below their figures."""


def page(ranking: Ranking, parts: Sequence[Section]) -> str:
    """The whole file. Every text that comes from outside is escaped."""
    return whole(f"Leanwatt: {ranking.study}", [(ranking, parts)])


def whole(title: str, chapters: Sequence[tuple[Ranking | None, Sequence[Section]]]) -> str:
    """A page of several chapters; one without a ranking has no charts and no badges."""
    plots: dict[str, Plot] = {}
    body, links = [], []
    for place, (ranking, parts) in enumerate(chapters):
        behind = f"-{place}" if place else ""
        body += _opening(ranking, is_whole=len(chapters) == 1)
        for part in parts:
            key = part.key + behind
            of = f"{ranking.study}: " if ranking is not None and len(chapters) > 1 else ""
            links.append(f'<li><a href="#{key}">{escape(of + part.title)}</a></li>')
            body.append(_section(ranking, part, key, plots))
    assets = files("leanwatt").joinpath("desk")
    return _PAGE.substitute(
        title=escape(title),
        links="".join(links),
        body="\n".join(body),
        data=_data(plots),
        style=assets.joinpath("report.css").read_text(encoding="utf-8"),
        script=assets.joinpath("report.js").read_text(encoding="utf-8"),
        undrawn=_UNDRAWN if plots else "",
        plotly=_packed_plotly() if plots else "",
    )


def _opening(ranking: Ranking | None, *, is_whole: bool) -> list[str]:
    """How sure the answer is, and of what machine and day it speaks."""
    if ranking is None:
        return []
    machine = ranking.machine
    where = [machine.get("cpu_model"), *(machine.get("gpus") or []), str(machine.get("utc") or "")[:10]]
    marks = "".join(
        f'<li class="badge {"sure" if is_sure else "unsure"}">{escape(each)}</li>' for each, is_sure in badges(ranking)
    )
    said = escape(" · ".join(str(each) for each in where if each))
    name = "" if is_whole else f"<h2>{escape(ranking.study)}</h2>"
    return [f'<div class="opening">{name}<ul class="badges">{marks}</ul><p class="soft">{said}</p></div>']


def _section(ranking: Ranking | None, part: Section, key: str, plots: dict[str, Plot]) -> str:
    said = [f"<h2>{escape(part.title)}</h2>"]
    paragraphs = [f"<p>{_inline(text)}</p>" for text in part.text]
    if part.chart == "front" and ranking is not None:  # The first plot belongs on the first screen.
        paragraphs.insert(0, _charts(ranking, part, plots))
    if part.facts:
        first, *others = (_inline(text) for text in part.text)
        paragraphs = [f'<p class="lead">{first}</p>', _facts(part.facts), *(f'<p class="soft">{o}</p>' for o in others)]
    said += paragraphs
    if part.items:
        said.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in part.items) + "</ul>")
    if part.chart not in (None, "front") and ranking is not None:
        said.append(_charts(ranking, part, plots))
    if part.grid is not None:
        said.append(_grid(part.title, part.grid))
    if part.code:
        said.append(f"<pre tabindex='0'><code>{escape(part.code)}</code></pre>")
    return f'<section id="{key}">{"".join(said)}</section>'


def _inline(text: str) -> str:
    """Escaped, with `words` between backticks set as code; a number keeps its percent sign on its line."""
    together = re.sub(r"(?<=\d) (?=%)", "\u00a0", escape(text))
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", together)


def _facts(facts: Sequence[Fact]) -> str:
    cards = "".join(
        f"<li><b>{escape(fact.value)}</b> <span>{escape(fact.about)}</span> <small>{escape(fact.note)}</small></li>"
        for fact in facts
    )
    return f'<ul class="facts">{cards}</ul>'


def _charts(ranking: Ranking, part: Section, plots: dict[str, Plot]) -> str:
    """Side by side where there is room."""
    found: Mapping[str, Plot] = getattr(charts, str(part.chart))(ranking, part.task)
    drawn = "".join(_plot(name, plot, plots) for name, plot in found.items())
    key = _key(ranking) if part.chart == "front" else ""
    return f'<div class="plots">{drawn}</div>{key}' if drawn else ""


def _plot(name: str, plot: Plot, plots: dict[str, Plot]) -> str:
    key = f"plot-{len(plots)}"
    plots[key] = plot
    title = f"<figcaption>{escape(name)}</figcaption>" if name else ""
    zoom = f'<button type="button" class="zoom" data-plot="{key}" aria-pressed="false">Only language models</button>'
    about = escape(str(plot.get("about", name)))
    return (
        f'<figure>{title}{zoom if plot.get("zoom") else ""}<div class="plot" id="{key}" role="img" '
        f'aria-label="{about}"></div></figure>'
    )


def _key(ranking: Ranking) -> str:
    """Which number in a plot is which variant."""
    names = short_names(ranking)
    lines = []
    for entry in ranking.entries:
        kind = charts.shape(ranking, entry)
        _, colour, letter = SHAPES[kind]
        mark = f'<i style="color:{colour}" aria-hidden="true">{letter}</i>'
        words = [kind] if kind in ("recommended", "reference") else []
        if kind == "recommended" and entry.label == ranking.reference:
            words = ["the reference, recommended"]
        said = "".join(f" <small>({word})</small>" for word in words)
        lines.append(f"<li>{mark} {escape(names[entry.label])}{said}</li>")
    return f'<ol class="key" aria-label="Numbers in the plots">{"".join(lines)}</ol>'


def _grid(title: str, whole_grid: Grid) -> str:
    """Without the columns that hold nothing: what is unknown of all is absent."""
    grid = _filled(whole_grid)
    kinds = ["figure" if _holds_figures(grid, column) else "word" for column in range(len(grid.head))]
    kinds[0] = "word"
    head = "".join(
        f"<th scope='col' class='{kind}'><button type='button'>{_breakable(cell)}</button></th>"
        for cell, kind in zip(grid.head, kinds, strict=True)
    )
    rows = "".join(
        f"<tr><th scope='row'>{_breakable(row[0])}</th>"
        + "".join(f"<td class='{kind}'>{_cell(cell)}</td>" for cell, kind in zip(row[1:], kinds[1:], strict=True))
        + "</tr>"
        for row in grid.rows
    )
    name = "wide many" if len(grid.head) > WIDE else "wide"
    return (
        f'<div class="{name}" role="region" aria-label="{escape(title)}, a table" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _breakable(name: str) -> str:
    """Escaped; a long name may break after what its parts end with."""
    return re.sub(r"(?<=[_(=,])(?=\w)", "<wbr>", escape(name, quote=False))


def _filled(grid: Grid) -> Grid:
    kept = [place for place in range(len(grid.head)) if any(row[place] not in ("", "-") for row in grid.rows)]
    return Grid(
        tuple(grid.head[place] for place in kept), tuple(tuple(row[place] for place in kept) for row in grid.rows)
    )


def _holds_figures(grid: Grid, column: int) -> bool:
    cells = [row[column] for row in grid.rows if row[column] not in ("", "-")]
    return bool(cells) and sum(bool(NUMBER.fullmatch(cell)) for cell in cells) * 2 > len(cells)


def _cell(cell: str) -> str:
    """The interval apart, so that it can stand smaller, and below."""
    found = BAND.fullmatch(cell)
    return f"{escape(found[1])} <small>{escape(found[2])}</small>" if found else escape(cell)


def _packed_plotly() -> str:
    """The plotting library in two fifths of its size; the page unpacks it."""
    from plotly.offline import get_plotlyjs

    return b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _data(plots: Mapping[str, Plot]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(plots, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


_UNDRAWN = """<noscript><style>#undrawn { display: block; }</style></noscript>
<p id="undrawn" class="soft" role="status" hidden>The plots could not be drawn here: they need scripts, and a browser of
2023 or later. The tables hold their figures.</p>"""
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<a class="skip" href="#report">Skip to the report</a>
<header><h1>$title</h1></header>
<nav aria-label="Contents"><details><summary>Contents</summary><ol>$links</ol></details></nav>
<main id="report" tabindex="-1">
$undrawn
$body
</main>
<script type="text/plain" id="plotly">$plotly</script>
<script type="application/json" id="plots">$data</script>
<script>
$script</script>
</body>
</html>
""")
