// The stream of what changed, and what it is drawn into. A message holds the parts that changed; the rest stays.
import { at, duration, el, write } from "./format.js";
import * as training from "./training.js";
import * as trading from "./trading.js";

const SILENCE = 10; // seconds without a message after which nothing on the page is called live
const state = { study: null, trader: null, deployment: null, device: null, names: null, problems: [], prediction: null };
const trials = new Map();
let ahead = 0; // the server's clock less this one's, milliseconds
let heard = null; // when the last message came, by this clock
let stream;

function connect() {
  stream?.close();
  const asked = new URLSearchParams(location.search);
  const query = new URLSearchParams();
  for (const name of ["study", "trader"]) if (asked.get(name)) query.set(name, asked.get(name));
  stream = new EventSource(`/events?${query}`);
  // A new connection begins with everything, so that nothing is missed when one breaks.
  stream.onmessage = (event) => take(JSON.parse(event.data));
}

function take(message) {
  heard = Date.now();
  ahead = Date.parse(message.time) - heard;
  const changed = (name) => name in message;
  for (const name of Object.keys(state)) if (changed(name)) state[name] = message[name];
  if (message.trials) {
    if (message.trials.anew) trials.clear();
    for (const row of message.trials.rows) trials.set(row.number, row);
  }
  if (changed("names")) drawNames();
  if (changed("problems")) drawProblems();
  if (changed("trader")) trading.drawTrader(state.trader, state.trader?.stale);
  if (message.equity || changed("prediction")) trading.drawEquity(state.trader, state.prediction, message.equity);
  if (changed("deployment")) trading.drawDeployment(state.deployment);
  if (changed("study")) training.drawStudy(state.study, state.study?.stale, age(state.study));
  if (changed("study") || message.trials) training.drawTrials(state.study, trials);
  if (changed("device") || changed("names")) training.drawMachine(state.device, state.names?.host);
  at("synthetic").hidden = !(state.study?.synthetic || state.trader?.synthetic);
  tick();
}

const age = (part) => (part?.updated ? Math.max(0, (Date.now() + ahead - Date.parse(part.updated)) / 1000) : null);

function tick() {
  if (heard === null) return;
  const silent = (Date.now() - heard) / 1000;
  const lost = silent > SILENCE;
  write(at("link"), lost ? "STALE" : "live", `badge ${lost ? "bad" : "good"}`);
  at("lost").hidden = !lost;
  if (lost) write(at("lost"), `STALE: no word from the dashboard’s server for ${duration(silent)}; it is asked again and again.`);
  if (state.trader) trading.traderAge(age(state.trader), state.trader.stale || lost);
  if (state.study) training.studyAge(age(state.study), state.study.stale || lost);
}

function drawNames() {
  const { names } = state;
  write(at("where"), `${names.host}: ${names.logs}`);
  for (const [kind, list] of [["study", names.studies], ["trader", names.traders]]) {
    const pick = at(`pick-${kind}`);
    const chosen = new URLSearchParams(location.search).get(kind) ?? "";
    const options = [["", list.length ? `newest (${list[0]})` : "none"], ...list.map((name) => [name, name])];
    pick.replaceChildren(...options.map(([value, text]) => {
      const option = el("option", text);
      option.value = value;
      option.selected = value === chosen;
      return option;
    }));
  }
}

function drawProblems() {
  const box = at("problems");
  box.hidden = !state.problems.length;
  const many = state.problems.length > 1 ? ` and ${state.problems.length - 1} more` : "";
  write(box.querySelector("summary"), `${state.problems[0] ?? ""}${many}`);
  box.querySelector("ul").replaceChildren(...state.problems.map((line) => el("li", line)));
}

function show(name, focus = false) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    at(tab.getAttribute("aria-controls")).hidden = !chosen;
    if (chosen && focus) tab.focus();
  }
  history.replaceState(null, "", `${location.pathname}${location.search}#${name}`);
  trading.redraw();
  training.redraw();
}

for (const tab of document.querySelectorAll("[role=tab]")) tab.addEventListener("click", () => show(tab.id.slice(4)));
for (const kind of ["study", "trader"]) {
  at(`pick-${kind}`).addEventListener("change", (event) => {
    const query = new URLSearchParams(location.search);
    if (event.target.value) query.set(kind, event.target.value);
    else query.delete(kind);
    history.replaceState(null, "", `?${query}${location.hash}`);
    connect();
  });
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input")) return;
  const inTabs = event.target.closest("[role=tablist]");
  if (event.key === "1") show("trading", true);
  else if (event.key === "2") show("training", true);
  else if (inTabs && ["ArrowLeft", "ArrowRight"].includes(event.key)) show(at("view-training").hidden ? "training" : "trading", true);
});
show(location.hash === "#training" ? "training" : "trading");
setInterval(tick, 1000);
connect();
