"""What a page that was told everything before must be told now: parts that changed, trials that changed, new bars."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from drl_agents.monitoring.curve import EquityCurve
from drl_agents.monitoring.snapshot import Snapshot
from drl_agents.monitoring.trading_records import Prediction

# Made for a terminal's width, where a page gets the whole curve; or long, and told by itself.
APART = ("equity_curve", "curve_start", "best_so_far", "prediction")
AGES = ("age_seconds",)  # the page works them out between two messages, too


class Increments:
    """One reader's memory of what it was told. `next` of each snapshot in turn gives the messages."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}
        self._trials: dict[int, str] = {}
        self._study, self._rows = "", None
        self._curve: tuple[str, int, int] = ("", 0, 0)
        self._prediction: Prediction | None = None

    def next(self, snapshot: Snapshot, curve: EquityCurve | None) -> dict[str, Any]:
        """The message after `snapshot`; the first one holds everything.

        time: when the snapshot was taken. study, trader, deployment, device, names, problems: present when they
        changed, null when they are gone; without ages, trials and curves. trials: {"anew": whether to forget those told
        before, "rows": [...]}, the ones that changed. equity: {"anew": ..., "first": number of the first bar given,
        "time": seconds since 1970, "equity": ...}, the bars that are new. prediction: of the trader, when it changed.
        """
        message: dict[str, Any] = {"time": snapshot.time}
        study = snapshot.study and asdict(replace(snapshot.study, trials=[]))
        trader = snapshot.trader and asdict(replace(snapshot.trader, equity_curve=[], prediction=None))
        for part in (study, trader):
            for name in (*APART, *AGES):
                if part:
                    part.pop(name, None)
        names = {"studies": snapshot.studies, "traders": snapshot.traders, "host": snapshot.host, "logs": snapshot.logs}
        parts = {
            "names": names,
            "study": study,
            "trader": trader,
            "deployment": snapshot.deployment and asdict(snapshot.deployment),
            "device": asdict(snapshot.device),
            "problems": snapshot.problems,
        }
        for name, part in parts.items():
            text = json.dumps(part, allow_nan=False)
            if self._told.get(name) != text:
                self._told[name], message[name] = text, part
        prediction = snapshot.trader.prediction if snapshot.trader else None
        if prediction is not self._prediction or "prediction" not in self._told:  # parsed anew when it was written
            self._prediction, self._told["prediction"] = prediction, "told"
            message["prediction"] = prediction and asdict(prediction)
        self._add_trials(message, snapshot)
        self._add_bars(message, snapshot, curve)
        return message

    def _add_trials(self, message: dict[str, Any], snapshot: Snapshot) -> None:
        name = snapshot.study.study if snapshot.study else ""
        anew = name != self._study
        if anew:
            self._study, self._trials = name, {}
        trials = snapshot.study.trials if snapshot.study else []
        if not anew and trials is self._rows:  # the file was not written since: the same objects
            return
        self._rows, rows = trials, []
        for trial in trials:
            row = asdict(trial)
            text = json.dumps(row, allow_nan=False)
            if trial.number is not None and self._trials.get(trial.number) != text:
                self._trials[trial.number] = text
                rows.append(row)
        if rows or anew:
            message["trials"] = {"anew": anew, "rows": rows}

    def _add_bars(self, message: dict[str, Any], snapshot: Snapshot, curve: EquityCurve | None) -> None:
        name = snapshot.trader.name if snapshot.trader else ""
        told_name, version, told = self._curve
        if curve is None or snapshot.trader is None:
            if told_name:
                message["equity"] = {"anew": True, "first": 0, "time": [], "equity": []}
            self._curve = ("", 0, 0)
            return
        anew = (name, curve.version) != (told_name, version) or told < curve.first
        start = 0 if anew else told - curve.first
        if anew or start < len(curve.time):
            message["equity"] = {
                "anew": anew,
                "first": curve.first + start,
                "time": curve.time[start:],
                "equity": curve.equity[start:],
            }
        self._curve = (name, curve.version, curve.end)
