"""What the timings come to: medians, ratios within the run, targets met or not; as JSON and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from drl_agents.benchmark.race import Timing
from drl_agents.benchmark.workloads import Target, Workload, trials_per_hour


def ratio(over: Timing, under: Timing) -> float:
    """Median over the rounds of the ratio of steps per second: both figures of a round were measured side by side."""
    return statistics.median(a / b for a, b in zip(over.rates, under.rates, strict=True))


def highest_rise(costs: Sequence[float]) -> float:
    """max over i < j of costs[j] / costs[i], for costs in order of size."""
    lowest, rise = costs[0], 0.0
    for cost in costs[1:]:
        rise, lowest = max(rise, cost / lowest), min(lowest, cost)
    return rise


def target_value(target: Target, timings: Mapping[str, Timing]) -> float | None:
    """The figure a target asks for, see `Target.kind`; None where one of its configurations was not timed."""
    chosen = [timings[name] for name in target.names]
    if any(t.status != "timed" for t in chosen):
        return None
    first = chosen[0]
    if target.kind == "speed-up":
        return ratio(first, chosen[1])
    if target.kind == "slow-down":
        return ratio(chosen[1], first)
    if target.kind == "by count":
        counts = [t.operations / t.steps for t in chosen]
        return ratio(chosen[1], first) / (counts[0] / counts[1])
    if target.kind == "rate":
        return first.steps_per_second
    if target.kind == "rise":
        return highest_rise([1 / t.steps_per_second for t in chosen])
    if target.kind == "growth":
        return first.memory_mb / chosen[1].memory_mb
    if target.kind == "busy":
        return first.gpu_busy
    raise ValueError(f"target kind {target.kind!r} is not known")


def judged(target: Target, timings: Mapping[str, Timing]) -> dict[str, Any]:
    """A target with its value and whether it was met; met is None where it could not be measured."""
    value = target_value(target, timings)
    met = None if value is None else value <= target.limit if target.at_most else value >= target.limit
    return {
        "target": target.text,
        "kind": target.kind,
        "configurations": list(target.names),
        "asked": target.limit,
        "at_most": target.at_most,
        "value": value,
        "met": met,
    }


def workload_results(workload: Workload, timings: Sequence[Timing]) -> dict[str, Any]:
    """A workload's part of the JSON: every configuration with its options and figures, and the targets."""
    rows = []
    for configuration, timing in zip(workload.configurations, timings, strict=True):
        median = timing.steps_per_second
        row = {
            **asdict(configuration),
            **asdict(timing),
            "steps_per_second": timing.rates,
            "median_steps_per_second": median,
            "microseconds_per_step": None if median is None else 1e6 / median,
        }
        if workload.name == "search":
            row["trials_per_hour"] = None if median is None else trials_per_hour(median)
        rows.append(row)
    by_name = {timing.name: timing for timing in timings}
    return {"configurations": rows, "targets": [judged(target, by_name) for target in workload.targets]}


def table(results: Mapping[str, Any]) -> str:
    """The results as text: one table, a workload after the other, and the targets below."""
    shown = ["steps/s", "lowest", "highest", "us/step", "memory MB", "GPU busy"]
    columns = ["workload", "configuration", "compiled", *shown]
    rows, notes, targets = [], [], []
    for name, part in results["workloads"].items():
        for row in part["configurations"]:
            if row["status"] != "timed":
                notes.append(f"{name}, {row['name']}: {row['status']}, {row['reason']}")
                continue
            rates = row["steps_per_second"]
            figures = [row["median_steps_per_second"], min(rates), max(rates)]
            busy = "" if row["gpu_busy"] is None else f"{row['gpu_busy']:.0%}"
            more = [f"{row['microseconds_per_step']:.2f}", f"{row['memory_mb']:,.0f}", busy]
            compiled = {True: "yes", False: "no", None: ""}[row["compiled"]]
            rows.append([name, row["name"], compiled, *(f"{x:,.0f}" for x in figures), *more])
        targets += [[name, *_target_row(target)] for target in part["targets"]]
    text = _aligned(columns, rows) if rows else ""
    if targets:
        text += "\n\n" + _aligned(["workload", "target", "asked", "measured", "met"], targets)
    return "\n".join([text, *(["", *notes] if notes else [])])


def _target_row(target: Mapping[str, Any]) -> list[str]:
    sign = "<=" if target["at_most"] else ">="
    value = "not measured" if target["value"] is None else f"{target['value']:,.4g}"
    met = {True: "yes", False: "NO", None: "?"}[target["met"]]
    return [target["target"], f"{sign} {target['asked']:,.4g}", value, met]


def _aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first two to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    lines = []
    for row in [columns, *rows]:
        cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
