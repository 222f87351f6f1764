// The trading view: one paper trader, its risk state, its model, what was promoted and what was refused.
import { EquityCharts } from "./charts.js";
import { at, cents, clock, DASH, duration, el, figures, money, number, pairs, percent, setting, short, table, write } from "./format.js";

const KIND = { ACTIVE: "good", REDUCING: "warn", HALTED: "bad", dead: "bad", FINISHED: "", filled: "good", rejected: "bad", partially_filled: "warn" };
let charts;

export function drawTrader(trader, stale) {
  at("trading-empty").hidden = Boolean(trader);
  at("trading-grid").hidden = !trader;
  if (!trader) return;
  charts ??= new EquityCharts();
  const gone = trader.state === "HALTED" && trader.process_state === "gone" ? ", process gone" : "";
  const word = trader.state === "dead" ? "DEAD: its process is gone" : trader.state + gone;
  write(at("trader-state"), stale ? `STALE, was ${word}` : word || "unknown", `badge ${stale ? "bad" : KIND[trader.state] ?? ""}`);
  const facts = [`${trader.broker} broker`, `${trader.timeframe} bars`, `last bar ${clock(trader.bar)} UTC`];
  facts.push(trader.reconciled ? `books agreed with the broker’s at ${clock(trader.reconciled)}` : "");
  write(at("trader-facts"), facts.filter(Boolean).join(" · "));
  const latency = trader.latency_ms;
  figures(at("trader-figures"), [
    ["Equity", money(trader.equity), `from ${money(trader.initial_equity)}`],
    ["Profit", money(trader.profit, true), percent(trader.profit_fraction, true), trader.profit < 0 ? "bad" : "good"],
    ["Drawdown", percent(trader.drawdown), `largest ${percent(trader.max_drawdown)}`],
    ["Cash", cents(trader.cash), trader.equity > 0 ? `${percent(trader.cash / trader.equity, false, 0)} of equity` : ""],
    ["Fees", money(trader.fees), ""],
    ["Orders", number(trader.n_orders, 9), `${number(trader.n_fills, 9)} with a fill`],
    ["Bars", number(trader.bars_done, 9), `since ${clock(trader.started).slice(5)}`],
    ["Bar to order", latency?.p99 != null ? `${number(latency.p99, 3)} ms` : DASH, latency?.p99 != null ? `p99, median ${number(latency.p50, 3)} ms` : "not measured"],
  ]);
  const out = trader.outlook;
  const band = out && `${out.where.toUpperCase()} the predicted band: ${money(out.low)} to ${money(out.high)} after ${number(out.bars, 9)} bars.`;
  write(at("outlook"), band ?? "", `note line ${out ? (out.where === "inside" ? "good" : "warn") : ""}`);
  drawRisk(trader);
  drawModel(trader);
  drawPositions(trader);
  drawOrders(trader);
}

function drawRisk(trader) {
  const risk = trader.risk;
  const name = risk?.state || trader.state;
  write(at("risk-state"), name === "dead" ? "DEAD" : name, `badge ${KIND[name] ?? ""}`);
  const rows = [];
  if (trader.feed_stale) rows.push("the trader finds its market data STALE");
  rows.push(...(risk?.reasons ?? []));
  const parts = [];
  if (rows.length) {
    const list = el("ul", "", "reasons bad");
    list.append(...rows.map((reason) => el("li", reason)));
    parts.push(list);
  }
  const limits = Object.entries(risk?.limits ?? {});
  if (limits.length) {
    const list = el("dl", "", "pairs");
    pairs(list, limits.map(([limit, value]) => [limit.replaceAll("_", " "), value === null ? "none" : setting(value)]));
    parts.push(list);
  } else parts.push(el("p", "This trader does not tell its limits.", "none"));
  at("risk").replaceChildren(...parts);
}

function drawModel(trader) {
  const from = trader.lineage;
  const rows = [
    ["Model", short(trader.model), trader.model],
    ["Study", trader.study || DASH],
    ["Trial", trader.trial === null ? DASH : String(trader.trial)],
  ];
  if (from) {
    rows.push(["Its value in the study", number(from.value)]);
    rows.push(["Steps it trained for", number(from.timesteps, 9)], ["Seed", from.seed === null ? DASH : String(from.seed)]);
    rows.push(["Data", `${from.data.source} ${from.data.timeframe}, ${number(from.data.bars, 9)} bars`]);
    rows.push(["Data fingerprint", short(from.data.fingerprint), from.data.fingerprint], ["Code", from.code_version || DASH]);
  }
  rows.push(["Trades", trader.symbols.join(", ") || DASH]);
  pairs(at("model"), rows);
}

function drawPositions(trader) {
  const rows = [...trader.positions]
    .sort((a, b) => Math.abs(b.value ?? 0) - Math.abs(a.value ?? 0))
    .map((p) => [p.symbol, number(p.shares, 6), money(p.price), cents(p.value), percent(p.weight)]);
  if (!rows.length) return at("positions").replaceChildren(el("p", "No positions: all in cash.", "none"));
  rows.push(["cash", "", "", cents(trader.cash), percent(trader.cash / trader.equity)]);
  const columns = [["Symbol", ""], ["Shares", "num"], ["Price", "num"], ["Value", "num"], ["Weight", "num"]];
  at("positions").replaceChildren(table("Positions", columns, rows));
}

function drawOrders(trader) {
  const rows = [...trader.orders].reverse().map((o) => {
    const whole = Math.abs(o.filled_quantity - o.quantity) <= 1e-6 * Math.abs(o.quantity);
    const part = !whole ? `${number(o.filled_quantity, 6)} at ` : "";
    const fill = o.filled_quantity ? part + money(o.filled_price) : DASH;
    const side = [o.side, o.side === "buy" ? "good" : "bad"];
    return [clock(o.bar), o.symbol, side, number(o.quantity, 6), [o.status.replaceAll("_", " "), KIND[o.status] ?? ""], fill];
  });
  if (!rows.length) return at("orders").replaceChildren(el("p", "No orders yet.", "none"));
  const columns = [["Decided, UTC", "soft"], ["Symbol", ""], ["Side", ""], ["Quantity", "num"], ["Status", ""], ["Filled at", "num"]];
  at("orders").replaceChildren(table("Orders and fills", columns, rows));
}

// bars: the stream's new ones, or undefined.
export function drawEquity(trader, prediction, bars) {
  if (!trader) return;
  charts ??= new EquityCharts();
  if (bars) charts.add(bars);
  charts.draw(prediction, trader.initial_equity);
  const names = [["Live", "live"]];
  if (prediction) names.push(["Predicted by the back-test: median, 5 % to 95 %", "band"]);
  const legend = at("equity-legend");
  if (legend.children.length !== names.length) legend.replaceChildren(...names.map(([name, kind]) => el("li", name, kind)));
  const note = prediction
    ? `Predicted from ${clock(prediction.start)} UTC on.`
    : "No prediction: it is made of the model’s returns on the bars its study held out, which are not beside it.";
  const part = charts.first > 0 ? ` The newest ${number(charts.time.length, 9)} bars are shown.` : "";
  write(at("equity-note"), `${note}${part} Drag to look closer, double-click to see all.`);
}

export function drawDeployment(deployment) {
  const champion = deployment?.champion;
  write(at("champion"), champion
    ? `Champion ${short(champion.bundle)}, Sharpe ${number(champion.sharpe, 3)}, since ${clock(champion.promoted)} (study ${champion.study}, trial ${champion.trial ?? "?"})`
    : "No champion yet: scripts/auto_replace_best.py --once takes a study’s best through the gate.");
  const events = [...(deployment?.audit ?? [])].reverse();
  if (!events.length) return at("audit").replaceChildren(el("p", "Nothing was promoted or refused yet.", "none"));
  const rows = events.map((e) => {
    const kind = /^(promoted|healthy)$/.test(e.event) ? "good" : /refused|roll|quarantine|abandon|torn|fail/.test(e.event) ? "warn" : "";
    return [clock(e.time), [e.event, kind], short(e.bundle), e.study || DASH, e.reasons.join("; ") || DASH];
  });
  const columns = [["Time, UTC", "soft"], ["Event", ""], ["Model", ""], ["Study", ""], ["Why", "text"]];
  at("audit").replaceChildren(table("Promotions and refusals", columns, rows));
}

export const traderAge = (seconds, stale) =>
  write(at("trader-age"), `${stale ? "STALE: " : ""}updated ${duration(seconds)} ago`, `age${stale ? " bad" : ""}`);
export const redraw = () => charts && [charts.equity, charts.drawdown].forEach((chart) => chart.ask());
