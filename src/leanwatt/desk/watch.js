// A study at work, asked for anew every few seconds. Whatever comes from outside is set as text only.
"use strict";

const at = (id) => document.getElementById(id);
const EVERY = 2000;

function put(id, text) { if (at(id).textContent !== text) at(id).textContent = text; }

function made(tag, text, name = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = name;
  return element;
}

function joules(value) {
  const [size, unit] = value >= 3.6e6 ? [3.6e6, "kWh"] : value >= 1000 ? [1000, "kJ"] : [1, "J"];
  return `${Number((value / size).toPrecision(3))} ${unit}`;
}

function duration(seconds) {
  if (seconds < 100) return `${Math.round(seconds)} s`;
  return seconds < 6000 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

const JOBS = { make: "Making variants", grade: "Grading them on validation", weigh: "Weighing, in rounds",
  confirm: "Confirming on the test split" };

function countLine([job, { done, wanted }]) {
  const line = document.createElement("li");
  line.append(made("span", JOBS[job] || job, "name"), made("span", wanted === null ? `${done}` : `${done} of ${wanted}`, "share"));
  if (wanted) {
    const bar = document.createElement("progress");
    bar.max = wanted;
    bar.value = done;
    bar.setAttribute("aria-label", JOBS[job] || job);
    line.append(bar);
  }
  return line;
}

function bestLine({ label, quality }) {
  const line = document.createElement("li");
  const words = Object.entries(quality).map(([task, value]) => `${task} ${value.toFixed(3)}`).join(", ");
  line.append(made("span", label, "name"), made("span", words, "share"));
  return line;
}

function facts(state) {
  const spent = state.spent;
  const found = [["Failed or refused", `${state.failed}`]];
  if (spent) {
    const energy = spent.joules === null ? "not known" : `${joules(spent.joules)}, ${spent.provenance}`;
    found.push(["Energy", energy], ["CPU time", duration(spent.cpu_seconds)], ["Time", duration(spent.seconds)]);
    if (spent.unknown_seconds) found.push(["Energy unknown for", duration(spent.unknown_seconds)]);
  }
  const more = state.left_joules === null ? "" : `, ${joules(state.left_joules)}`;
  if (state.left_seconds > 0) found.push(["Left, about", duration(state.left_seconds) + more]);
  if (state.left_hours !== null) found.push(["Left of the budget", `${state.left_hours.toFixed(2)} h`]);
  if (state.left_kwh !== null) found.push(["Left of the budget", `${Number(state.left_kwh.toPrecision(3))} kWh`]);
  return found.flatMap(([name, value]) => [made("dt", name), made("dd", value)]);
}

async function look() {
  try {
    const state = await (await fetch("/state")).json();
    put("study", state.study);
    put("stage", state.stage);
    at("counts").replaceChildren(...Object.entries(state.counts).map(countLine));
    at("facts").replaceChildren(...facts(state));
    at("best").replaceChildren(...state.best.map(bestLine));
    put("latest", state.latest && `Last: ${state.latest}`);
    document.title = `${state.stage} - ${state.study}`;
  } catch {
    put("stage", "The watch has ended; start it again to go on.");
  }
  setTimeout(look, EVERY);
}
look();
