"""The whole benchmark: the workloads one after the other, one table, one JSON file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from drl_agents.benchmark.learning import learning_results, quoted
from drl_agents.benchmark.machine import machine_facts, versions
from drl_agents.benchmark.race import SPIN, Setup, run_race
from drl_agents.benchmark.results import table, workload_results
from drl_agents.benchmark.work import Work
from drl_agents.benchmark.workloads import WORKLOADS, Workload, find_workload
from drl_agents.training.device import pick_device
from environments.errors import InputError

LEARNING = "learning"
LEAST_REPEATS = 5  # of which a median is worth quoting
LEAST_SEEDS = 10


def run_benchmark(
    names: Sequence[str],
    work: Work,
    setup: Setup,
    *,
    peers: bool = True,
    only: Sequence[str] = (),
    seeds: int = LEAST_SEEDS,
    iterations: int = 30,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run workloads by name, "learning" among them.

    Args:
        peers: time the other learners too. only: configurations to run, by name; all if empty.
        seeds, iterations: of the learning check: how many runs of each configuration, and how long each trains.
        tell: called with a line of progress at a time.

    Returns:
        what `--out` writes: started, seconds, quotable, machine, versions, seeds, work, setup, environment, workloads,
        learning. quotable is False where the work is not the one agreed on, or medians are of fewer than 5.

    Raises:
        InputError: an unknown workload or configuration, a workload the device is not for, fewer than two seeds.
    """
    device = pick_device(setup.device)
    known = [_workload(name, device) for name in names if name != LEARNING]
    learners = quoted(device) if LEARNING in names else []
    _check_names(only, [c.name for w in known for c in w.configurations] + [c.name for c in learners])
    chosen = [workload.restricted(only, peers) for workload in known]
    learners = [c for c in learners if not only or c.name in only]
    if learners and seeds < 2:
        raise InputError(f"seeds={seeds}: the learning check compares at least 2")
    started, clock = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.perf_counter()
    results: dict[str, Any] = {
        "started": started,
        "seconds": 0.0,
        "quotable": work == Work() and setup.repeats >= LEAST_REPEATS and (not learners or seeds >= LEAST_SEEDS),
        "machine": machine_facts(device),
        "versions": versions(),
        "seeds": {"market": work.market_seed, "agent": work.seed, LEARNING: list(range(seeds)) if learners else []},
        "work": asdict(work),
        "setup": asdict(setup),
        "environment": {SPIN: str(setup.spin_count), "threads": setup.threads, "of": "every competitor"},
        "workloads": {},
        LEARNING: None,
    }
    for workload in chosen:
        tell(f"{workload.name}: {len(workload.configurations)} configurations")
        timings = run_race(workload.configurations, work, setup, tell)
        results["workloads"][workload.name] = workload_results(workload, timings)
    if learners:
        torch.set_num_threads(setup.threads)
        rows = learning_results(learners, range(seeds), work, iterations, device, tell)
        results[LEARNING] = {"iterations": iterations, "configurations": rows}
    results["seconds"] = time.perf_counter() - clock
    return results


def _workload(name: str, device: torch.device) -> Workload:
    workload = find_workload(name)
    if workload.device not in (None, device.type):
        raise InputError(
            f"workload {name} is for {workload.device}, not {device.type}: give --device {workload.device}"
        )
    return workload


def _check_names(only: Sequence[str], names: Sequence[str]) -> None:
    if unknown := [name for name in only if name not in names]:
        accepted = ", ".join(dict.fromkeys(names))
        raise InputError(f"no workload that was asked for has {', '.join(unknown)}: accepted are {accepted}")


def failed(results: Mapping[str, Any]) -> bool:
    """Whether a configuration broke, or learned something else than its reference; missing ones are no failure."""
    rows = [row for part in results["workloads"].values() for row in part["configurations"]]
    learning = (results[LEARNING] or {}).get("configurations", [])
    return any(row["status"] == "failed" for row in rows) or any(row.get("within_noise") is False for row in learning)


def as_text(results: Mapping[str, Any]) -> str:
    """The table of the timings, the learning check below it, and why figures must not be quoted, if they must not."""
    parts = [table(results)] if results["workloads"] else []
    for row in (results[LEARNING] or {}).get("configurations", []):
        parts.append(_learned(row))
    if not results["quotable"]:
        parts.append(f"not to be quoted: other work than agreed, or medians of fewer than {LEAST_REPEATS}")
    return "\n\n".join(parts)


def _learned(row: Mapping[str, Any]) -> str:
    if row["status"] == "missing":
        return f"learning, {row['name']}: missing, {row['reason']}"
    own = f"{row['mean']:.3f} +- {row['standard_error']:.3f}"
    if row["status"] == "reference":
        return f"learning, {row['name']}: {own} of the best return; it is eager fp32 itself"
    other = f"{row['reference_mean']:.3f} +- {row['reference_standard_error']:.3f}"
    verdict = "the same within noise" if row["within_noise"] else "NOT the same"
    low, high = row["difference_interval"]
    difference = f"{row['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
    return (
        f"learning, {row['name']}: {own} of the best return, eager fp32 {other}, difference by seed {difference}, "
        f"p = {row['p']:.3f}: {verdict}"
    )


def workload_names() -> list[str]:
    """Every workload there is, the learning check last."""
    return [*WORKLOADS, LEARNING]
