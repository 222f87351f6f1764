// The training view: one study, its trials, what mattered, and the machine it runs on.
import { TrialsChart } from "./charts.js";
import { at, clock, DASH, duration, el, figures, gib, number, pairs, setting, short, table, write } from "./format.js";

const KIND = { running: "good", finished: "", interrupted: "warn", failed: "bad", dead: "bad", complete: "good", pruned: "warn", alive: "good", gone: "bad" };
const SHOWN = 200; // rows of the table: the newest trials
let chart;

export function drawStudy(study, stale, age) {
  at("training-empty").hidden = Boolean(study);
  at("training-grid").hidden = !study;
  if (!study) return;
  const word = study.state === "dead" ? "DEAD: its process is gone" : study.state.toUpperCase();
  write(at("study-state"), stale ? `STALE, was ${word}` : word || "unknown", `badge ${stale ? "bad" : KIND[study.state] ?? ""}`);
  write(at("study-facts"), `phase ${study.phase} · started ${clock(study.started)} UTC`);
  const { counts, best } = study;
  const done = counts.complete + counts.pruned + counts.failed;
  const live = study.state === "running" && study.phase === "search" && !stale;
  const left = live && study.eta_seconds !== null ? Math.max(0, study.eta_seconds - (age ?? 0)) : null;
  const share = study.n_trials > 0 ? Math.min(1, done / study.n_trials) : 0;
  figures(at("study-figures"), [
    ["Trials", `${done} of ${study.n_trials ?? "?"}`, "", "", share],
    ["Complete", number(counts.complete, 9), "ran to their end"],
    ["Pruned", number(counts.pruned, 9), "cut short as hopeless"],
    ["Failed", number(counts.failed, 9), "raised an error", counts.failed ? "bad" : ""],
    ["Running", number(counts.running, 9), `${study.workers.length} worker${study.workers.length === 1 ? "" : "s"}`],
    ["Trials an hour", number(study.trials_per_hour, 3), "since this run began"],
    ["Time to go", left === null ? DASH : duration(left), !live ? "not searching" : left === null ? "known after the first trial" : "at this pace"],
    ["Best", best ? number(best.value) : DASH, best ? `trial ${best.number}` : "no complete trial yet"],
  ]);
  const { objective } = study;
  write(at("objective"), [objective.direction === "minimize" ? "Smaller is better:" : "Larger is better:", objective.name, objective.unit && `(${objective.unit})`].filter(Boolean).join(" "));
  drawBest(study);
  drawImportances(study);
  drawWorkers(study);
  drawData(study);
  drawOptuna(study);
}

function drawBest({ best }) {
  write(at("best-number"), best ? `trial ${best.number}, ${number(best.value)}` : "");
  if (best) pairs(at("best"), Object.entries(best.params).map(([name, value]) => [name, setting(value), String(value)]));
  else at("best").replaceChildren(el("dt", "No trial has run to its end yet."));
}

function drawImportances({ importances }) {
  const rows = Object.entries(importances);
  if (!rows.length) return at("importances").replaceChildren(el("p", "Told once eight trials are complete.", "none"));
  const largest = Math.max(...rows.map(([, share]) => share));
  at("importances").replaceChildren(...rows.flatMap(([name, share]) => {
    const bar = el("meter");
    bar.max = largest;
    bar.value = share;
    bar.setAttribute("aria-label", name);
    return [el("span", name), bar, el("span", share.toFixed(3), "num")];
  }));
}

function drawWorkers({ workers }) {
  if (!workers.length) return at("workers").replaceChildren(el("p", "No worker runs a trial now.", "none"));
  const rows = workers.map((w) => [w.host, String(w.pid), [w.state, KIND[w.state] ?? ""], w.trials.join(", ")]);
  at("workers").replaceChildren(table("Workers", [["Host", ""], ["Process", "num"], ["State", ""], ["Runs trials", "num"]], rows));
}

function drawData({ data, gate, report, bundle }) {
  const verdict = gate ? (gate.passed ? "passed" : "refused") : "not judged yet";
  const rows = [["Gate", verdict, (gate?.reasons ?? []).join("\n")]];
  for (const reason of gate?.reasons ?? []) rows.push(["", reason]);
  rows.push(["Data", `${data.source} ${data.timeframe}, ${number(data.bars, 9)} bars`], ["Symbols", data.symbols.join(", ") || DASH]);
  rows.push(["Fingerprint", short(data.fingerprint), data.fingerprint]);
  if (report) rows.push(["Report", report]);
  if (bundle) rows.push(["Bundle", bundle]);
  pairs(at("study-data"), rows);
}

function drawOptuna({ optuna }) {
  const parts = optuna
    ? [el("p", "Slices, contours and every trial’s history are there. Install optuna-dashboard once, then", "note"), el("code", optuna, "command")]
    : [el("p", "This study is kept in the --storage it was started with: give optuna-dashboard that URL.", "note")];
  at("optuna").replaceChildren(...parts);
}

export function drawTrials(study, trials) {
  if (!study) return;
  chart ??= new TrialsChart();
  const rows = [...trials.values()].sort((a, b) => a.number - b.number);
  chart.draw(rows, study.objective.direction === "minimize");
  const legend = at("trials-legend");
  if (!legend.children.length) legend.append(el("li", "A complete trial", "dot"), el("li", "Best so far"));
  const newest = rows.slice(-SHOWN).reverse();
  write(at("trials-count"), newest.length < rows.length ? `the newest ${newest.length} of ${rows.length}` : "");
  if (!newest.length) return at("trials").replaceChildren(el("p", "No trial has begun yet.", "none"));
  const best = study.best?.number;
  const cells = newest.map((t) => [
    String(t.number), [t.state, KIND[t.state] ?? ""], number(t.value), duration(t.seconds),
    t.reason || Object.entries(t.params).map(([name, value]) => `${name} ${setting(value)}`).join("  "),
  ]);
  const columns = [["Trial", "num"], ["State", ""], ["Value", "num"], ["Time", "num"], ["Parameters, or why it failed", "soft"]];
  at("trials").replaceChildren(table("Trials", columns, cells, (row) => (row[0] === String(best) ? "best" : "")));
}

export function drawMachine(device, host) {
  write(at("machine-name"), host || "");
  const meters = [];
  const meter = (name, text, share) => {
    const box = el("div");
    const line = el("div", "", "of");
    const title = el("span", name);
    title.title = name;
    line.append(title, el("span", text));
    box.append(line);
    if (share !== null && Number.isFinite(share)) {
      const bar = el("progress");
      bar.value = share;
      bar.setAttribute("aria-label", name);
      box.append(bar);
    }
    meters.push(box);
  };
  const busy = (value) => (value === null ? DASH : `${value.toFixed(0)} %`);
  meter(`Processor, ${device.cpu_count ?? "?"} cores`, busy(device.cpu_percent), device.cpu_percent / 100);
  meter("Memory", `${gib(device.memory_used)} of ${gib(device.memory_total)} GiB`, device.memory_used / device.memory_total);
  for (const gpu of device.gpus) {
    meter(gpu.name, busy(gpu.utilization), gpu.utilization === null ? null : gpu.utilization / 100);
    meter("its memory", `${gib(gpu.memory_used)} of ${gib(gpu.memory_total)} GiB`, gpu.memory_used === null ? null : gpu.memory_used / gpu.memory_total);
    const watts = gpu.power === null ? DASH : `${gpu.power.toFixed(0)}${gpu.power_limit ? ` of ${gpu.power_limit.toFixed(0)}` : ""} W`;
    meter("its temperature and power", `${gpu.temperature === null ? DASH : gpu.temperature.toFixed(0)} °C, ${watts}`, gpu.power_limit && gpu.power !== null ? gpu.power / gpu.power_limit : null);
  }
  if (device.reasons.length) meters.push(el("p", `${device.gpus.length ? "" : "No GPU: "}${device.reasons.join("; ")}`, "none"));
  at("machine").replaceChildren(...meters);
}

export const studyAge = (seconds, stale) =>
  write(at("study-age"), `${stale ? "STALE: " : ""}updated ${duration(seconds)} ago`, `age${stale ? " bad" : ""}`);
export const redraw = () => chart?.chart.ask();
