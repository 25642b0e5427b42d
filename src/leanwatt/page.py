"""A report as one HTML file that opens from disk: styles, data and the plotting library are all inside it."""

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from string import Template

from leanwatt import charts
from leanwatt.charts import Plot
from leanwatt.ranking import Ranking
from leanwatt.section import Grid, Section


def page(ranking: Ranking, parts: Sequence[Section]) -> str:
    """The whole file. Every text that comes from outside is escaped."""
    from plotly.offline import get_plotlyjs

    plots: dict[str, Plot] = {}
    body = "\n".join(_section(ranking, part, plots) for part in parts)
    return _PAGE.substitute(
        title=escape(f"Leanwatt: {ranking.study}"), body=body, data=_data(plots), plotly=get_plotlyjs()
    )


def _section(ranking: Ranking, part: Section, plots: dict[str, Plot]) -> str:
    said = [f"<h2>{escape(part.title)}</h2>", *(f"<p>{_inline(text)}</p>" for text in part.text)]
    if part.items:
        said.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in part.items) + "</ul>")
    if part.chart is not None:
        found: Mapping[str, Plot] = getattr(charts, part.chart)(ranking)
        said += [_plot(part.chart, name, plot, plots) for name, plot in found.items()]
    if part.grid is not None:
        said.append(_grid(part.grid))
    if part.code:
        said.append(f"<pre><code>{escape(part.code)}</code></pre>")
    return f"<section>{''.join(said)}</section>"


def _inline(text: str) -> str:
    """Escaped, with `words` between backticks set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _plot(chart: str, name: str, plot: Plot, plots: dict[str, Plot]) -> str:
    key = f"plot-{len(plots)}"
    plots[key] = plot
    return f'<div class="plot" id="{key}" role="img" aria-label="{escape(f"{chart} {name}".strip())}"></div>'


def _grid(grid: Grid) -> str:
    head = "".join(f"<th scope='col'><button type='button'>{escape(cell)}</button></th>" for cell in grid.head)
    rows = "".join(
        "<tr>"
        + f"<th scope='row'>{escape(row[0])}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in grid.rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _data(plots: Mapping[str, Plot]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(plots, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d9dee5; --paper: #ffffff; --tint: #f3f6f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #9aa5b3; --line: #313a46; --paper: #14181e; --tint: #1c222b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
section:first-of-type p:first-of-type { font-size: 1.15rem; background: var(--tint); padding: .9rem 1rem;
  border-radius: .5rem; }
p, li { max-width: 46rem; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; min-width: 100%;
  overflow-wrap: normal; }
th, td { padding: .4rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
  vertical-align: top; }
th:first-child { text-align: left; white-space: normal; min-width: 9rem; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-weight: 600; background: var(--tint); }
thead button { all: unset; cursor: pointer; }
thead button:focus-visible { outline: 2px solid currentColor; outline-offset: 2px; }
[aria-sort=ascending] button::after { content: " \2191"; }
[aria-sort=descending] button::after { content: " \2193"; }
tbody th { font-weight: 500; }
code, pre { font-family: ui-monospace, monospace; font-size: .85em; }
pre { background: var(--tint); padding: .8rem 1rem; border-radius: .5rem; overflow-x: auto; }
.plot { margin: .6rem 0; min-height: 320px; }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --tint: #f3f6f9; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .wide { overflow: visible; border: 0; }
  th, td { white-space: normal; padding: .15rem .3rem; font-size: 7.5pt; }
  section, tr { break-inside: avoid; }
}
</style>
</head>
<body>
<h1>$title</h1>
$body
<script>$plotly</script>
<script type="application/json" id="plots">$data</script>
<script>
const plots = JSON.parse(document.getElementById("plots").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
function draw() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
  for (const [id, plot] of Object.entries(plots)) {
    const layout = structuredClone(plot.layout);
    const clear = "rgba(0,0,0,0)", lines = {gridcolor: line, zerolinecolor: line, linecolor: line};
    Object.assign(layout, {paper_bgcolor: clear, plot_bgcolor: clear, font: {color: ink, size: 12}});
    for (const axis of ["xaxis", "yaxis"]) Object.assign(layout[axis], lines);
    Plotly.react(id, plot.data, layout, {responsive: true, displaylogo: false, displayModeBar: false});
  }
}
function value(row, column) {  // The number that a cell begins with; its text where there is none.
  const text = row.cells[column].textContent.trim(), number = parseFloat(text.replace(/[^0-9eE.+-].*/, ""));
  return Number.isNaN(number) ? text : number;
}
function order(a, b) {  // Numbers before words.
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : a.localeCompare(b);
}
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, column = head.cellIndex, body = head.closest("table").tBodies[0];
    const falls = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falls ? "descending" : "ascending");
    const rows = [...body.rows].sort((a, b) => order(value(a, column), value(b, column)));
    body.append(...(falls ? rows.reverse() : rows));
  });
}
dark.addEventListener("change", draw);
draw();
</script>
</body>
</html>
""")
