"use strict";

const plots = JSON.parse(document.getElementById("plots").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const zoomed = new Set();
const PAPER = 680; // Pixels that a sheet of paper has room for.
const SANS = "system-ui, sans-serif";

function fitted(text, number, room) { // A name in so many pixels; where there is no room for it, its number alone.
  const letters = Math.floor(room / 6.6);
  if (text.length <= letters) return text;
  if (letters < 9) return room > 9 * number.length ? number : "";
  const begin = Math.floor((letters - 2) / 2);
  return `${text.slice(0, begin)}..${text.slice(text.length - (letters - 2 - begin))}`;
}

function plain(text) { // Plotly reads some tags in its texts.
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function band(strip, wide) { // Coloured bands above the plot, with the winners' names.
  const shapes = [], annotations = [];
  for (const { from, to, number, name, colour } of strip) {
    shapes.push({ type: "rect", xref: "paper", yref: "paper", x0: from, x1: to, y0: 6, y1: 30, ysizemode: "pixel",
      yanchor: 1, line: { width: 0 }, fillcolor: colour, opacity: 0.28 });
    if (from > 0) {
      shapes.push({ type: "line", xref: "paper", yref: "paper", x0: from, x1: from, y0: 0, y1: 1,
        line: { dash: "dot", width: 1, color: "#9aa3ad" } });
    }
    annotations.push({ xref: "paper", yref: "paper", x: (from + to) / 2, y: 1, yshift: 18, showarrow: false,
      xanchor: "center", yanchor: "middle", text: plain(fitted(name, number, (to - from) * wide - 6)),
      font: { size: 12 } });
  }
  return { shapes, annotations };
}

function drawn(id, plot, ink, line, wide) {
  const layout = structuredClone(plot.layout), clear = "rgba(0,0,0,0)";
  Object.assign(layout, { paper_bgcolor: clear, plot_bgcolor: clear, font: { color: ink, size: 12, family: SANS } });
  for (const axis of ["xaxis", "yaxis"]) {
    Object.assign(layout[axis], { gridcolor: line, zerolinecolor: line, linecolor: line, fixedrange: wide < 500 });
  }
  if (plot.strip) {
    Object.assign(layout, band(plot.strip, wide - 90));
    layout.margin.t = 44;
  }
  if (plot.rows) {
    layout.yaxis.tickvals = plot.rows.map(({ number }) => number);
    layout.yaxis.ticktext = plot.rows.map(({ number, name }) => plain(fitted(`${number} ${name}`, number, wide * 0.4)));
  }
  if (zoomed.has(id)) {
    Object.assign(layout.xaxis, { range: plot.zoom.x, tickvals: undefined, ticktext: undefined });
    Object.assign(layout.xaxis, marks(plot.zoom.x, plot.layout.xaxis));
    layout.yaxis.range = plot.zoom.y;
  }
  return layout;
}

function marks([low, high], axis) { // 1, 2 and 5 of each decade, in the words of the whole axis.
  const unit = axis.ticktext[0].replace(/^\S+ [Mkmµn]?/, "");
  const steps = [[1e6, "M"], [1e3, "k"], [1, ""], [1e-3, "m"], [1e-6, "µ"], [1e-9, "n"]];
  const tickvals = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power += 1) {
    for (const step of high - low > 0.45 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]) tickvals.push(step * 10 ** power);
  }
  const words = (value) => {
    const [size, prefix] = steps.find(([least]) => value >= 0.9995 * least) || steps.at(-1);
    return `${Number((value / size).toPrecision(3))} ${prefix}${unit}`;
  };
  return { tickvals, ticktext: tickvals.map(words) };
}

async function unpacked() { // The plotting library comes as gzip in base64, which is two fifths of its size.
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (each) => each.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script); // It runs at once.
  script.remove();
}

function draw(onPaper = false) {
  if (!globalThis.Plotly) return; // Not unpacked yet.
  const style = getComputedStyle(document.documentElement);
  const ink = onPaper ? "#000" : style.getPropertyValue("--ink").trim();
  const line = onPaper ? "#ccc" : style.getPropertyValue("--line").trim();
  for (const [id, plot] of Object.entries(plots)) {
    const wide = onPaper ? PAPER : document.getElementById(id).clientWidth;
    const layout = drawn(id, plot, ink, line, wide);
    if (onPaper) layout.width = PAPER;
    const placed = ({ text, textposition }) => plot.zoom.places[text?.[0]] || textposition;
    const data = zoomed.has(id) ? plot.data.map((each) => ({ ...each, textposition: placed(each) })) : plot.data;
    Plotly.react(id, data, layout, { responsive: !onPaper, displaylogo: false, displayModeBar: false });
  }
}

function value(row, column) { // The number that a cell begins with; its text where there is none.
  const text = (row.cells[column].firstChild?.textContent ?? "").trim();
  const number = parseFloat(text.replace(/[^0-9eE.+-].*/, ""));
  return Number.isNaN(number) ? text : number;
}

function rank(a) { return typeof a === "number" ? 0 : a === "" || a === "-" ? 2 : 1; } // What is unknown comes last.

function order(a, b, falls) {
  if (rank(a) !== rank(b)) return rank(a) - rank(b);
  const found = typeof a === "number" ? a - b : a.localeCompare(b);
  return falls ? -found : found;
}

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, column = head.cellIndex, body = head.closest("table").tBodies[0];
    const falls = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falls ? "descending" : "ascending");
    body.append(...[...body.rows].sort((a, b) => order(value(a, column), value(b, column), falls)));
  });
}
for (const button of document.querySelectorAll(".zoom")) {
  button.addEventListener("click", () => {
    const id = button.dataset.plot, is = !zoomed.has(id);
    if (is) zoomed.add(id); else zoomed.delete(id);
    button.setAttribute("aria-pressed", String(is));
    draw();
  });
}
const contents = document.querySelector("nav details"), roomy = matchMedia("(min-width: 80rem)");
contents.open = roomy.matches;
roomy.addEventListener("change", () => { contents.open = roomy.matches; });
dark.addEventListener("change", () => draw());
let last = innerWidth;
addEventListener("resize", () => { if (innerWidth !== last) { last = innerWidth; draw(); } });
addEventListener("beforeprint", () => draw(true));
addEventListener("afterprint", () => draw());
if (Object.keys(plots).length > 0) {
  unpacked().then(() => draw(matchMedia("print").matches)).catch((error) => {
    console.error(error);
    document.getElementById("undrawn").hidden = false;
  });
}
