// The desk: a ticket goes out, likely causes and a draft come back. Whatever comes from outside is set as text only.
"use strict";

const at = (id) => document.getElementById(id);
const SHOWN = 5;
const state = { model: null, ticket: "", answer: null }; // An answer that is rated has its rating's number.

function shown(id, is) { at(id).hidden = !is; }
function say(text) { at("said").textContent = text; }

async function call(path, method = "GET", body = undefined) {
  const headers = { "content-type": "application/json" };
  const key = sessionStorage.getItem("key");
  if (key) headers.authorization = `Bearer ${key}`;
  const reply = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  if (reply.status === 401) {
    sessionStorage.removeItem("key");
    shown("door", true);
    shown("ask", false);
    at("key").focus();
  }
  if (!reply.ok) {
    const found = await reply.json().catch(() => ({}));
    const wait = reply.headers.get("retry-after");
    const why = found.error ? found.error.message : `The server answered ${reply.status}.`;
    throw new Error(wait ? `${why} Try again in ${wait} s.` : why);
  }
  return reply.status === 204 ? null : reply.json();
}

async function told(work) {
  try {
    await work();
  } catch (error) {
    say(error instanceof TypeError ? "The server cannot be reached." : error.message);
  }
}

const UNITS = [[3.6e6, "kWh"], [1e3, "kJ"], [1, "J"], [1e-3, "mJ"]];
function joules(value) {
  const [size, unit] = UNITS.find(([least]) => value >= least) || UNITS[3];
  return `${Number((value / size).toPrecision(3))} ${unit}`;
}

function energyWords(energy) {
  if (energy.joules === null) return `Energy of this answer: not known (${energy.why}).`;
  const band = energy.lower === null ? "" : `, between ${joules(energy.lower)} and ${joules(energy.upper)}`;
  return `Energy of this answer: ${joules(energy.joules)}${band} (${energy.provenance}).`;
}

async function enter() {
  const found = (await call("/v1/models")).data[0];
  state.model = found;
  shown("door", false);
  shown("ask", true);
  at("model").textContent = found.leanwatt.variant;
  const none = new Option("The first one, or none of these", "");
  at("cause").replaceChildren(none, ...found.leanwatt.causes.map((cause) => new Option(cause, cause)));
  shown("likely", found.leanwatt.causes.length > 0);
  shown("choose", found.leanwatt.causes.length > 0);
  shown("drafted", found.leanwatt.writes);
  shown("rating", found.leanwatt.rating_days !== null);
  at("kept").textContent = `A rating keeps the ticket for ${found.leanwatt.rating_days} days, to train better models.`;
  await day();
}

async function day() {
  const { day: today, promise } = await call("/v1/energy");
  const spent = Object.entries(today.joules).map(([kind, value]) => `${joules(value)} ${kind}`).join(", ");
  const unknown = today.unknown ? `; of ${today.unknown} the energy is not known` : "";
  const since = today.since.replace("T", " ").replace("+00:00", " UTC");
  at("day").textContent = `Since ${since}: ${today.answers} ${today.answers === 1 ? "answer" : "answers"}, ${spent || "no energy known"}${unknown}.`;
  const words = { kept: "The report's promise is kept", drifts: "Drifted from the report", "cannot tell": "" };
  const why = promise.why ? `: ${promise.why}` : "";
  at("promise").textContent = words[promise.status] ? `${words[promise.status]}${why}.` : "";
}

function causeLine({ cause, probability }) {
  const line = document.createElement("li");
  const [name, share, bar] = ["span", "span", "progress"].map((tag) => document.createElement(tag));
  name.className = "name";
  name.textContent = cause;
  share.className = "share";
  share.textContent = `${(100 * probability).toFixed(1)} %`;
  bar.max = 1;
  bar.value = probability;
  bar.setAttribute("aria-hidden", "true");
  line.append(name, share, bar);
  return line;
}

function showCauses(all) {
  const causes = state.answer.causes;
  at("causes").replaceChildren(...causes.slice(0, all ? causes.length : SHOWN).map(causeLine));
  shown("more", !all && causes.length > SHOWN);
}

function show(answer) {
  state.answer = { ...answer, rating: null };
  showCauses(false);
  at("draft").value = answer.response ?? "";
  shown("cut", answer.truncated);
  at("spent").textContent = energyWords(answer.energy);
  at("cause").value = "";
  showRating();
  shown("answer", true);
  at("answered").focus();
}

function showRating() {
  const isRated = state.answer.rating !== null;
  shown("undo", isRated);
  at("undo").disabled = false;
  for (const id of ["right", "wrong", "cause"]) at(id).disabled = isRated;
}

// Nothing can be pressed twice, and the reply goes to the answer it is for: another may be shown by then.
async function changeRating(work, said, then, otherwise) {
  const { answer } = state;
  for (const id of ["right", "wrong", "cause", "undo"]) at(id).disabled = true;
  const before = answer.rating;
  try {
    answer.rating = await work();
  } finally {
    if (answer === state.answer) {
      showRating();
      at(answer.rating === before ? otherwise : then).focus();
    }
  }
  if (answer === state.answer) say(said);
}

async function ask() {
  const ticket = at("ticket").value;
  if (!ticket.trim()) { say("The ticket is empty."); return; }
  at("go").disabled = true;
  say("Asking...");
  try {
    const answer = await call("/v1/tickets", "POST", { ticket });
    state.ticket = ticket;
    show(answer);
    say("Answered.");
    await day();
  } finally {
    at("go").disabled = false;
  }
}

async function rate(isRight) {
  const draft = at("draft").value.trim();
  const said = state.answer.response;
  const rating = {
    ticket: state.ticket,
    said_cause: state.answer.causes.length ? state.answer.causes[0].cause : null,
    said_response: said,
    is_right: isRight,
    cause: at("cause").value || null,
    response: said !== null && draft && draft !== said ? draft : null,
  };
  const keep = async () => (await call("/v1/feedback", "POST", rating)).id;
  await changeRating(keep, "Thank you: kept.", "undo", isRight ? "right" : "wrong");
}

async function unrate() {
  const remove = () => call(`/v1/feedback/${state.answer.rating}`, "DELETE"); // Gives null.
  await changeRating(remove, "Taken back, and deleted.", "right", "undo");
}

async function copy() {
  const draft = at("draft");
  if (navigator.clipboard) await navigator.clipboard.writeText(draft.value);
  else { draft.select(); document.execCommand("copy"); } // Pages that are not on https have no clipboard.
  say("Copied.");
}

at("ask").addEventListener("submit", (event) => { event.preventDefault(); told(ask); });
at("ticket").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); told(ask); }
});
at("file").addEventListener("change", () => told(async () => {
  const [file] = at("file").files;
  if (file) { at("ticket").value = await file.text(); at("file").value = ""; at("ticket").focus(); }
}));
at("door").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", at("key").value.trim());
  at("key").value = "";
  say("");
  told(enter);
});
at("more").addEventListener("click", () => { showCauses(true); at("answered").focus(); });
at("right").addEventListener("click", () => told(() => rate(true)));
at("wrong").addEventListener("click", () => told(() => rate(false)));
at("undo").addEventListener("click", () => told(unrate));
at("copy").addEventListener("click", () => told(copy));
told(enter);
