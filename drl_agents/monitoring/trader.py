"""Reading a paper trader's folder: `<logs>/paper/<name>/`, and the bundle of the model that trades."""

from __future__ import annotations

import math
from bisect import bisect_right
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from drl_agents.monitoring.curve import EquityCurve
from drl_agents.monitoring.liveness import age_seconds, process_state
from drl_agents.monitoring.study import thin
from drl_agents.monitoring.trading_records import Lineage, Outlook, Prediction, TraderSnapshot
from drl_agents.monitoring.typed_json import fill, label, parse_time, read_json, stamp

STALE_SECONDS = 300.0  # or two bars, whichever is longer
MOST_BARS = 100_000  # of a prediction: a page has to draw it
WORKING = ("ACTIVE", "REDUCING")


class TraderReader:
    """One paper trader, looked at again and again. `curve` is its equity, bar by bar.

    Args:
        logs: where the bundles are, deployed or beside their study.
    """

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder, self.logs = folder, logs
        self.curve = EquityCurve(folder / "equity.csv")
        self._model, self._lineage = "", None
        self._seen: tuple[int, ...] | None = None
        self._prediction: Prediction | None = None
        self._faults: list[str] = []

    def read(self, now: datetime, problems: list[str]) -> TraderSnapshot | None:
        """The trader as it is at `now`; None, with a problem noted, where its state.json cannot be read."""
        path = self.folder / "state.json"
        raw = read_json(path, problems)
        if raw is None:
            return None
        trader = fill(TraderSnapshot, raw, label(path), problems)
        trader.name = trader.name or self.folder.name
        trader.feed_stale = raw.get("stale") is True
        trader.process_state = process_state(trader.process.pid, trader.process.process_started, trader.host)
        if trader.state in WORKING and trader.process_state == "gone":
            trader.state = "dead"
        if trader.equity is not None and trader.initial_equity is not None:
            trader.profit = trader.equity - trader.initial_equity
            trader.profit_fraction = trader.profit / trader.initial_equity if trader.initial_equity > 0 else None
        self.curve.update(problems)
        trader.equity_curve = thin(self.curve.equity)
        if self.curve.time:
            trader.curve_start = datetime.fromtimestamp(self.curve.time[0], UTC).isoformat()
        trader.age_seconds = age_seconds(trader.updated, now, label(path), problems)
        recent = self.curve.time[-50:]
        bar = median(b - a for a, b in zip(recent, recent[1:], strict=False)) if len(recent) > 1 else 0.0
        working = trader.state in WORKING or (trader.state == "HALTED" and trader.process_state == "alive")
        trader.stale = working and (trader.age_seconds or 0) > max(STALE_SECONDS, 2 * bar)
        trader.prediction = self._prediction_of(trader, problems)
        trader.outlook = trader.prediction and outlook(trader.prediction, self.curve)
        trader.lineage = self._lineage_of(trader, problems)
        return trader

    def _prediction_of(self, trader: TraderSnapshot, problems: list[str]) -> Prediction | None:
        """What is predicted of the trader's own model. The file is parsed when it was written."""
        path = self.folder / "prediction.json"
        written = stamp(path)
        if written != self._seen:
            self._faults = []
            self._prediction, self._seen = read_prediction(path, self._faults), written
        problems += self._faults
        own = self._prediction is not None and self._prediction.model in ("", trader.model)
        return self._prediction if own else None

    def _lineage_of(self, trader: TraderSnapshot, problems: list[str]) -> Lineage | None:
        """Read once per model: a bundle's files never change."""
        if trader.model and trader.model != self._model:
            places = [self.logs / "deployment" / "bundles" / Path(trader.model[:16]).name]
            if trader.study:
                places.append(self.logs / "studies" / Path(trader.study).name / "bundle")
            self._model = trader.model
            self._lineage = next((found for place in places if (found := read_lineage(place, trader.model))), None)
        return self._lineage


def read_lineage(folder: Path, model: str) -> Lineage | None:
    """Where the model in a bundle's folder comes from; None where there is no bundle of that id."""
    # A trader may run a bundle from anywhere: that none is here is no fault.
    raw = read_json(folder / "bundle.json", [])
    if raw is None or raw.get("id") != model or not isinstance(raw.get("lineage"), dict):
        return None
    return fill(Lineage, {**raw["lineage"], "code_version": raw.get("code_version")}, label(folder), [])


def read_prediction(path: Path, problems: list[str]) -> Prediction | None:
    """The back-test's prediction; None where there is none, with a problem noted where it is not whole."""
    if not path.exists():
        return None
    raw = read_json(path, problems)
    if raw is None:
        return None
    found = fill(Prediction, {**raw, "start": raw.get("from")}, label(path), problems)
    lengths = {len(column) for column in (found.bars, found.q05, found.q50, found.q95)}
    steps = zip([0, *found.bars], found.bars, strict=False)
    if len(lengths) > 1 or lengths == {0} or not all(a < b <= MOST_BARS for a, b in steps):
        problems.append(
            f"{label(path)}: bars, q05, q50 and q95 should be lists of one length, bars rising from 1 to {MOST_BARS}"
        )
        return None
    return found


def outlook(prediction: Prediction, curve: EquityCurve) -> Outlook | None:
    """Where the newest bar of `curve` stands; None where the prediction has none for it.

    The equity E_0 of the bar at the prediction's start (the prediction's own, where it says it) becomes, h bars later,
    E_0 exp(q) with q the quantile of the cumulative log return after h bars.
    """
    start = parse_time(prediction.start)
    if start is None or not curve.time:
        return None
    begun = bisect_right(curve.time, start.timestamp())  # of the bars known, the first that is later
    bars = len(curve.time) - begun
    equity = prediction.equity if prediction.equity is not None or begun == 0 else curve.equity[begun - 1]
    if equity is None or bars not in prediction.bars:
        return None
    i = prediction.bars.index(bars)
    try:
        low, high = equity * math.exp(prediction.q05[i]), equity * math.exp(prediction.q95[i])
    except OverflowError:
        return None
    now = curve.equity[-1]
    return Outlook(bars, low, high, "below" if now < low else "above" if now > high else "inside")
