// Three uPlot charts. Data is kept here in arrays that only grow at their end; drawing waits for the next frame.
import { at, clock, money, number, percent } from "./format.js";

const LIMIT = 10000; // newest bars that are kept, as the server does
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const dark = matchMedia("(prefers-color-scheme: dark)");

class Chart {
  constructor(id, options) {
    this.node = at(id);
    this.options = options;
    this.data = null;
    this.dirty = false;
    new ResizeObserver(() => this.plot && this.node.clientWidth && this.plot.setSize(this.size())).observe(this.node);
    dark.addEventListener("change", () => this.rebuild());
    document.addEventListener("visibilitychange", () => this.ask());
  }
  size() {
    return { width: this.node.clientWidth, height: this.node.clientHeight };
  }
  set(data) {
    this.data = data;
    this.dirty = true;
    this.ask();
  }
  ask() {
    if (!this.dirty || document.hidden || !this.node.clientWidth) return;
    this.dirty = false;
    requestAnimationFrame(() => (this.plot ? this.renew() : this.rebuild()));
  }
  // What the reader has zoomed to stays; one who sees everything goes on to see everything.
  renew() {
    const { min, max } = this.plot.scales.x;
    const known = this.plot.data[0];
    const zoomed = known.length > 1 && (min > known[0] || max < known[known.length - 1]);
    this.plot.batch(() => {
      this.plot.setData(this.data, !zoomed);
      if (zoomed) this.plot.setScale("x", { min, max });
    });
  }
  rebuild() {
    if (!this.data || !this.node.clientWidth) return;
    this.plot?.destroy();
    const axis = { stroke: style("--soft"), grid: { stroke: style("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const options = this.options(axis);
    this.plot = new uPlot({ ...this.size(), legend: { show: false }, padding: [8, 6, 0, 0], ...options }, this.data, this.node);
  }
}

const cursor = (sync) => ({ y: false, drag: { x: true, y: false }, points: { size: 6 }, ...(sync ? { sync: { key: sync } } : {}) });

export class EquityCharts {
  constructor() {
    this.clear();
    const labels = (u, splits) => splits.map((i) => this.label(i, splits));
    // Bars are counted, not timed: a weekend is no wider than a night.
    this.equity = new Chart("equity-plot", (axis) => ({
      cursor: cursor("bars"),
      scales: { x: { time: false } },
      axes: [{ ...axis, size: 28, values: labels, space: 90, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] }, { ...axis, size: 74, values: (u, ticks) => ticks.map((v) => "$" + v.toLocaleString("en-US")) }],
      series: [{}, this.line("--band", 0), this.line("--band", 0), this.line("--accent", 1, [2, 4]), this.line("--accent", 1.6)],
      bands: [{ series: [2, 1], fill: style("--band") }],
      hooks: { setCursor: [(u) => this.tell(u.cursor.idx)], draw: [(u) => this.note(u)] },
    }));
    this.drawdown = new Chart("drawdown-plot", (axis) => ({
      cursor: cursor("bars"),
      scales: { x: { time: false }, y: { range: (u, low) => [Math.min(low ?? 0, -0.001) * 1.05, 0] } },
      axes: [{ ...axis, size: 28, values: labels, space: 90, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] }, { ...axis, size: 74, values: (u, ticks) => ticks.map((v) => percent(v, false, Math.abs(ticks[0]) < 0.02 ? 1 : 0)) }],
      series: [{}, { ...this.line("--bad", 1), fill: style("--bad-bg") }],
    }));
  }
  line(colour, width, dash) {
    return { stroke: style(colour), width, dash, points: { show: false }, spanGaps: false };
  }
  clear() {
    this.first = 0;
    [this.time, this.value, this.fall, this.peak] = [[], [], [], -Infinity];
  }
  // New bars of the stream: they follow the ones known, or replace them.
  add({ anew, first, time, equity }) {
    if (anew) {
      this.clear();
      this.first = first;
    }
    for (let i = 0; i < time.length; i++) {
      this.peak = Math.max(this.peak, equity[i]);
      this.time.push(time[i]);
      this.value.push(equity[i]);
      this.fall.push(this.peak > 0 ? equity[i] / this.peak - 1 : null);
    }
    if (this.time.length > 1.25 * LIMIT) {
      const gone = this.time.length - LIMIT;
      for (const column of [this.time, this.value, this.fall]) column.splice(0, gone);
      this.first += gone;
    }
  }
  label(i, ticks) {
    const k = i - this.first;
    if (k >= this.time.length) return `+${k - this.time.length + 1}`;
    if (k < 0 || !Number.isInteger(i)) return "";
    const text = clock(this.time[k]);
    const span = this.time[Math.min(this.time.length, ticks[ticks.length - 1] - this.first) - 1] - this.time[Math.max(0, ticks[0] - this.first)];
    return span > 86400 * 5 ? text.slice(0, 10) : text.slice(5);
  }
  // prediction: quantiles of the cumulative log return after each of its bars.
  draw(prediction, initial) {
    const n = this.time.length;
    let from = -1;
    let capital = initial;
    if (prediction) {
      const start = Date.parse(prediction.start) / 1000;
      for (let k = n - 1; k >= 0 && from < 0; k--) if (this.time[k] <= start) from = k;
      capital = prediction.equity ?? (from >= 0 ? this.value[from] : initial);
    }
    const ahead = prediction && capital > 0 ? prediction.bars : [];
    const total = Math.max(n, ahead.length ? from + 1 + ahead[ahead.length - 1] : 0);
    const x = Array.from({ length: total }, (_, i) => this.first + i);
    const pad = (values) => (total > n ? values.concat(Array(total - n).fill(null)) : values);
    const [low, middle, high] = ["q05", "q50", "q95"].map((name) => {
      const column = Array(total).fill(null);
      if (ahead.length && from >= 0) column[from] = capital;
      ahead.forEach((bars, i) => {
        const value = capital * Math.exp(prediction[name][i]);
        column[from + bars] = Number.isFinite(value) ? value : null;
      });
      return column;
    });
    this.band = low;
    this.upper = high;
    this.equity.set([x, low, high, middle, pad(this.value)]);
    this.drawdown.set([x, pad(this.fall)]);
    this.tell(null);
    const last = n ? `${money(this.value[n - 1])} at ${clock(this.time[n - 1])}` : "no bar yet";
    this.equity.node.setAttribute("aria-label", `Equity over ${n} bars, last ${last}`);
    this.drawdown.node.setAttribute("aria-label", `Drawdown, now ${percent(n ? -this.fall[n - 1] : null)}`);
  }
  // Said in the page, too: how many bars are painted, and which are in sight.
  note(u) {
    this.equity.node.dataset.bars = this.first + this.time.length;
    this.equity.node.dataset.sight = `${Math.round(u.scales.x.min)} ${Math.round(u.scales.x.max)}`;
  }
  tell(index) {
    const k = index ?? this.time.length - 1;
    const parts = [];
    if (k >= 0 && k < this.time.length) {
      parts.push(clock(this.time[k]), money(this.value[k]), `drawdown ${percent(-this.fall[k])}`);
    }
    if (this.band?.[k] != null) parts.push(`90 % band ${money(this.band[k])} to ${money(this.upper[k])}`);
    at("equity-at").textContent = parts.join("   ");
  }
}

export class TrialsChart {
  constructor() {
    this.rows = [];
    this.chart = new Chart("trials-plot", (axis) => ({
      cursor: cursor(),
      scales: { x: { time: false } },
      axes: [{ ...axis, size: 28, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] }, { ...axis, size: 60, values: (u, ticks) => ticks.map((v) => number(v, 3)) }],
      series: [
        {},
        { stroke: style("--dot"), paths: () => null, points: { show: true, size: 6, fill: style("--dot"), stroke: style("--dot") } },
        { stroke: style("--accent"), width: 2, paths: uPlot.paths.stepped({ align: 1 }), points: { show: false }, spanGaps: true },
      ],
      hooks: { setCursor: [(u) => this.tell(u.cursor.idx)] },
    }));
  }
  draw(trials, minimise, unit) {
    this.unit = unit;
    this.rows = trials;
    let best = null;
    const curve = trials.map((t) => {
      if (t.state === "complete" && t.value != null) best = best === null ? t.value : minimise ? Math.min(best, t.value) : Math.max(best, t.value);
      return best;
    });
    this.chart.set([trials.map((t) => t.number), trials.map((t) => (t.state === "complete" ? t.value : null)), curve]);
    this.chart.node.setAttribute("aria-label", `Values of ${trials.length} trials, best ${number(best)}`);
    this.tell(null);
  }
  tell(index) {
    const trial = this.rows[index ?? this.rows.length - 1];
    at("trial-at").textContent = trial ? `trial ${trial.number}  ${trial.state}  ${number(trial.value)}` : "";
  }
}
