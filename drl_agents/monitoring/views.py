"""The terminal's views of a snapshot: what is said of the trader, the training, the deployments, the machine."""

from __future__ import annotations

import math

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from drl_agents.monitoring.formatting import cents, clock, duration, money, number, percent, plain, setting, short, size
from drl_agents.monitoring.gpu import DeviceSnapshot
from drl_agents.monitoring.panels import LOUD, STYLES, Bar, Flow, Part, Plot, frame, row, state, table, updated
from drl_agents.monitoring.records import StudySnapshot
from drl_agents.monitoring.snapshot import Snapshot
from drl_agents.monitoring.trading_records import DeploymentSnapshot, Order, TraderSnapshot
from drl_agents.monitoring.typed_json import parse_time

START = "./start_vectorized_training.sh"
TRADE = "python scripts/paper_trade.py --broker local"
LAST_TRIALS, TOP_IMPORTANCES = 12, 8


def headline(snapshot: Snapshot) -> Text:
    """One line: when, where, and whether anything shown is not a real market."""
    synthetic = any(part is not None and part.synthetic for part in (snapshot.study, snapshot.trader))
    warning = (" SYNTHETIC DATA: NOT A REAL MARKET ", LOUD) if synthetic else ""
    when = (f"{snapshot.time[:19].replace('T', ' ')} UTC", "dim")
    return row(("drl_agents", "bold"), when, warning, f"{snapshot.host}: {snapshot.logs}")


def problem_lines(snapshot: Snapshot, most: int | None = None) -> list[Text]:
    """What could not be read, at most `most` lines."""
    told = snapshot.problems[:most]
    left = len(snapshot.problems) - len(told)
    ends = [""] * (len(told) - 1) + ([f" (and {left} more)"] if left else [""])
    return [row(("!", "bold red"), (told[i] + ends[i], "red")) for i in range(len(told))]


def trader_view(trader: TraderSnapshot | None, logs: str) -> RenderableType:
    """The paper trader: how it does, its risk state, its model, what it holds and what it ordered."""
    if trader is None:
        return frame(
            "Paper trader", [row(f"No paper trader has written to {logs} yet. Start one with"), command(TRADE)]
        )
    gain = "green" if (trader.profit or 0) >= 0 else "bold red"
    bars = f"{trader.bars_done if trader.bars_done is not None else '?'} bars of {trader.timeframe}"
    gone = "process gone" if trader.state == "HALTED" and trader.process_state == "gone" else ""
    word = state(trader.state) if trader.state != "dead" else ("DEAD (its process is gone)", STYLES["dead"])
    figures: list[Part] = [
        (f"Equity {money(trader.equity)}", "bold"),
        (f"profit {money(trader.profit, sign=True)} ({percent(trader.profit_fraction, sign=True)})", gain),
        f"drawdown {percent(trader.drawdown)} (max {percent(trader.max_drawdown)})",
        f"cash {cents(trader.cash)}",
        f"fees {money(trader.fees)}",
        f"{number(trader.n_orders, 9)} orders, {number(trader.n_fills, 9)} fills",
        f"broker {trader.broker}",
    ]
    if trader.reconciled:
        figures.append(f"reconciled {clock(trader.reconciled)}")
    if trader.latency_ms and trader.latency_ms.p99 is not None:
        figures.append(f"bar to order {number(trader.latency_ms.p99, 3)} ms (p99)")
    trial = "?" if trader.trial is None else trader.trial
    lines: list[RenderableType] = [
        row(word, gone, updated(trader.age_seconds, trader.stale), bars, f"last {clock(trader.bar)}"),
        Flow(figures),
        *risk_lines(trader),
        row("Model", (short(trader.model), "bold"), f"from study {trader.study}, trial {trial}", *lineage(trader)),
    ]
    if curve := trader.equity_curve:
        lines += [Text(), Plot(curve, (money(max(curve)), money(min(curve))))]
    if trader.outlook is not None:
        seen = trader.outlook
        where = (f"{seen.where} the back-test's 90 % band", "green" if seen.where == "inside" else "bold yellow")
        band = (f"{money(seen.low)} to {money(seen.high)} after {seen.bars} bars", "dim")
        lines.append(row(where, band))
    lines.append(Text())
    if trader.positions:
        held = sorted(trader.positions, key=lambda item: -abs(item.value or 0.0))
        cells = [(p.symbol, number(p.shares, 6), money(p.price), cents(p.value), percent(p.weight)) for p in held]
        lines.append(table(("Position", "shares>", "price>", "value>", "weight>"), cells))
    else:
        lines.append(row(("No positions: all in cash", "dim")))
    if trader.orders:
        lines += [
            Text(),
            table(("Order", "symbol", "side", "quantity>", "status", "filled*"), map(_order, trader.orders[::-1])),
        ]
    return frame(f"Paper trader {trader.name}", lines, trader.synthetic)


def _order(order: Order) -> tuple[str | Text, ...]:
    side = Text(plain(order.side), "green" if order.side.lower() == "buy" else "red")
    status = Text(plain(order.status).replace("_", " "), STYLES.get(order.status.lower(), ""))
    return clock(order.bar), order.symbol, side, number(order.quantity, 6), status, fills(order)


def fills(order: Order) -> str:
    """At what price an order was filled, and how much of it where that is not all."""
    if not order.filled_quantity:
        return "–"
    whole = order.quantity is not None and math.isclose(order.filled_quantity, order.quantity, rel_tol=1e-6)
    part = "" if whole else f"{number(order.filled_quantity, 6)} at "
    return part + money(order.filled_price)


def risk_lines(trader: TraderSnapshot) -> list[RenderableType]:
    """The risk state with its reasons, and the limits; nothing where the trader tells nothing of them."""
    lines: list[RenderableType] = []
    if trader.feed_stale:
        lines.append(row((" STALE: the trader finds its market data old ", LOUD)))
    if trader.risk is not None:
        reasons: list[Part] = [(reason, "yellow") for reason in trader.risk.reasons]
        lines.append(Flow(["Risk", state(trader.risk.state), *reasons]))
        limits = [f"{name.replace('_', ' ')} {setting(value)}" for name, value in trader.risk.limits.items()]
        lines += [Flow([("Limits", "dim"), *((limit, "dim") for limit in limits)])] if limits else []
    return lines


def lineage(trader: TraderSnapshot) -> list[Part]:
    """Where the model comes from, as far as its bundle is at hand."""
    known = trader.lineage
    if known is None:
        return []
    return [(f"value {number(known.value)}", "dim"), (f"data {short(known.data.fingerprint)}", "dim")]


def study_view(study: StudySnapshot | None, logs: str, now: float) -> RenderableType:
    """The training: how far it is, its best, what mattered, who works; `now` in seconds since 1970."""
    if study is None:
        return frame("Training", [row(f"No training has written to {logs} yet. Start with"), command(START)])
    counts, objective, best = study.counts, study.objective, study.best
    begun, running = parse_time(study.started), study.state == "running"
    since = f"for {duration(now - begun.timestamp())}" if begun and running else f"started {clock(study.started)}"
    word = state(study.state.upper()) if study.state != "dead" else ("DEAD (its process is gone)", STYLES["dead"])
    done, target = counts.complete + counts.pruned + counts.failed, study.n_trials or 0
    progress = f"{done}/{target or '?'} trials"
    if running and study.phase == "search" and study.eta_seconds is not None:
        progress += f"  ETA {duration(max(0.0, study.eta_seconds - (study.age_seconds or 0.0)))}"
    lines: list[RenderableType] = [
        row(word, updated(study.age_seconds, study.stale), f"phase {study.phase}", since),
        Bar(done / target if target > 0 else 0.0, progress),
        Flow(
            [
                (f"{counts.complete} complete", "green"),
                (f"{counts.pruned} pruned", "yellow" if counts.pruned else "dim"),
                (f"{counts.failed} failed", "bold red" if counts.failed else "dim"),
                f"{counts.running} running",
                f"{number(study.trials_per_hour, 3)} trials/hour",
            ]
        ),
    ]
    if best is None:
        lines.append(row((f"No best yet ({objective.direction} {objective.name})", "dim")))
    else:
        lines.append(row("Best", (number(best.value), "bold"), f"trial {best.number}", (objective.unit, "dim")))
        lines.append(Flow([(f"{key} {setting(value)}", "dim") for key, value in best.params.items()]))
    if study.gate is not None:
        lines.append(row("Gate", state("passed" if study.gate.passed else "refused")))
        lines += [Padding(Text(plain(reason)), (0, 0, 0, 2)) for reason in study.gate.reasons]
    if curve := study.best_so_far:
        lines += [Text(), Plot(curve, (number(max(curve)), number(min(curve))), 4)]
    if study.importances:
        top = list(study.importances.items())[:TOP_IMPORTANCES]
        cells = [(name, f"{share:.3f}", Text("━" * round(30 * share / top[0][1]), "cyan")) for name, share in top]
        lines += [Text(), table(("Importance", "share>", "*"), cells)]
    lines += [Text()] if study.workers else []
    for worker in study.workers:
        runs = ", ".join(map(str, worker.trials))
        lines.append(row("Worker", f"{worker.host} process {worker.pid}", state(worker.state), f"trials {runs}"))
    newest = sorted(study.trials, key=lambda trial: trial.number or 0, reverse=True)[:LAST_TRIALS]
    rows = [
        (
            f"{trial.number}",
            Text(plain(trial.state), STYLES.get(trial.state.lower(), "")),
            number(trial.value),
            duration(trial.seconds),
            trial.reason or "  ".join(f"{key} {setting(value)}" for key, value in trial.params.items()),
        )
        for trial in newest
    ]
    lines += [Text(), table(("Trial", "state", "value>", "time>", "parameters*"), rows)] if rows else []
    data = study.data
    bars = "" if data.bars is None else f"{data.bars:,} bars"
    lines.append(Text())
    lines.append(
        row(("Data", "dim"), data.source, data.timeframe, bars, " ".join(data.symbols), short(data.fingerprint))
    )
    places = (("Report", study.report), ("Bundle", study.bundle), ("Optuna", study.optuna))
    lines += [row((name, "dim"), text) for name, text in places if text]
    return frame(f"Training {study.study}", lines, study.synthetic)


def deployment_view(deployment: DeploymentSnapshot | None) -> RenderableType:
    """The champion, then the last decisions, newest first."""
    champion = deployment.champion if deployment else None
    lines: list[RenderableType] = [row(("Nothing is deployed", "dim"))]
    if champion is not None:
        trial = "?" if champion.trial is None else champion.trial
        since = f"since {clock(champion.promoted)[:10]}"
        figures = (f"Sharpe {number(champion.sharpe, 3)}", since, (f"study {champion.study}, trial {trial}", "dim"))
        lines = [row("Champion", (short(champion.bundle), "bold"), *figures)]
    for event in reversed(deployment.audit if deployment else []):
        name = (event.event, "bold green" if event.event in ("promoted", "healthy") else "yellow")
        lines.append(row((clock(event.time), "dim"), name, short(event.bundle), "; ".join(event.reasons)))
    return frame("Deployment", lines)


def device_view(device: DeviceSnapshot) -> RenderableType:
    """Processor, memory and GPUs, as many in a line as there is room for."""
    cores = f"{device.cpu_count} cores" if device.cpu_count else "cores unknown"
    parts: list[Part] = []
    if device.cpu_percent is not None:
        parts.append(f"CPU {device.cpu_percent:.0f} % of {cores}")
        parts.append(f"memory {size(device.memory_used, device.memory_total)}")
    for gpu in device.gpus:
        busy = "–" if gpu.utilization is None else f"{gpu.utilization:.0f} %"
        heat = "" if gpu.temperature is None else f" {gpu.temperature:.0f} °C"
        power = "" if gpu.power is None else f" {gpu.power:.0f} W"
        parts.append((f"{gpu.name} {busy} {size(gpu.memory_used, gpu.memory_total)}{heat}{power}", "green"))
    reasons = "; ".join(device.reasons)
    if reasons:
        parts.append((reasons if device.gpus else f"no GPU: {reasons}", "dim"))
    return Flow(parts)


def command(text: str) -> Text:
    """A command to type."""
    return row((f"  {text}", "bold green"))


def render(snapshot: Snapshot, training: bool = False) -> Group:
    """Everything, one below the other; `training` leaves the trader and the deployments out."""
    moment = parse_time(snapshot.time)
    study = study_view(snapshot.study, snapshot.logs, moment.timestamp() if moment else 0.0)
    parts: list[RenderableType] = [headline(snapshot), *problem_lines(snapshot)]
    if not training:
        parts += [trader_view(snapshot.trader, snapshot.logs), deployment_view(snapshot.deployment)]
    return Group(*parts, study, device_view(snapshot.device))
