"""How soon SHAC and PPO come to the best policy of a planted market; writes shac.json.

    python -m tests.benchmarks.shac [--minutes 5] [--seeds 10] [--together 5] [--output FILE]

512 environments x 32 steps an iteration; `together` seeds are trained side by side, as one population. After an
iteration the policy is walked over bars it was not trained on; its share is what it earns there (with the chance of the
bars averaged out) of what the best policy earns, which value iteration gives (`tests/reference/planted.py`). Seconds
are of one thread's CPU time in exploring and updating, of the whole population divided by its members. What is in the
file already is not run again: each call goes on for as many minutes as it is given, and says what is left.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from drl_agents.agents.base import AgentBase
from drl_agents.agents.registry import build_agent
from drl_agents.benchmark.machine import machine_facts
from drl_agents.networks.policy import PolicySpec
from environments.files import write_json
from environments.market_env import MarketVecEnv
from tests.reference.planted import Planted, best_decision, gains, optimum, walking

N_ENVS, HORIZON, ITERATIONS, HIDDEN = 512, 32, 40, (32, 32)
TRAIN, TEST, WALKS = 400_000, 20_000, 64
# Each at the best of the few learning rates and noises that were tried on two seeds, with the discount it then shares.
AGENTS: dict[tuple[str, str], dict[str, Any]] = {
    ("shac", "weights"): {"learning_rate": 1e-2, "gamma": 0.9, "anneal_lr": True, "log_std": -2.0},
    ("shac", "trades"): {"learning_rate": 1e-2, "gamma": 0.9, "anneal_lr": True, "log_std": -1.0},
    ("ppo", "weights"): {"learning_rate": 1e-3, "gamma": 0.9},
    ("ppo", "trades"): {"learning_rate": 1e-3, "gamma": 0.9},
}
CELLS = [(ic, cost, action) for action in ("weights", "trades") for ic in (0.05, 0.02, 0.1) for cost in (1.0, 0.0)]
MARKS = (0.8, 0.95)


def judged_after(iteration: int) -> bool:
    """Every iteration of the first twelve, then fewer."""
    return iteration <= 12 or (iteration <= 24 and iteration % 2 == 0) or iteration % 4 == 0


def curve(name: str, planted: Planted, action: str, seeds: list[int]) -> dict[str, Any]:
    """Train a population, one member for each seed.

    Returns:
        its configuration, seconds per member and iteration, and the shares (iterations judged, members).
    """
    market = planted.market(TRAIN + TEST, seed=1)
    best = optimum(planted)
    held = walking(planted, market, (TRAIN, TRAIN + TEST), WALKS, 1)
    most = gains(planted, held, best_decision(best)).item()
    options = planted.env_options(action)
    env = MarketVecEnv(market, N_ENVS * len(seeds), n_members=len(seeds), segments=[(0, TRAIN)], seed=seeds, **options)
    config = dict(AGENTS[name, action])
    spec = PolicySpec.of(env, hidden=HIDDEN, **({"log_std": config.pop("log_std")} if "log_std" in config else {}))
    agent: AgentBase = build_agent(name, spec, {"horizon_len": HORIZON, **config}, seeds)
    agent.policy.fit_normalizer(env)
    walk = walking(planted, market, (TRAIN, TRAIN + TEST), WALKS, len(seeds), action)
    seconds, done, shares = 0.0, [], []
    for iteration in range(1, ITERATIONS + 1):
        agent.progress = (iteration - 1) / ITERATIONS
        began = time.process_time()
        agent.update(agent.explore_env(env, HORIZON))
        seconds += time.process_time() - began
        if judged_after(iteration):
            done.append(iteration)
            shares.append([round(x / most, 4) for x in gains(planted, walk, agent.decide).tolist()])
    return {
        "agent": name, "seeds": seeds, "action": action,
        "ic": planted.ic, "cost_bps": planted.cost_bps, "config": AGENTS[name, action],
        "optimum_bps_per_bar": best.gain * 1e4, "optimum_on_the_test_bars_bps": most * 1e4,
        "cpu_seconds_per_iteration": seconds / ITERATIONS / len(seeds), "iterations": done, "shares": shares,
    }  # fmt: skip


def reached(row: dict[str, Any], mark: float) -> dict[str, Any]:
    """When each seed first came to a share: how many did, and of those the medians of steps and seconds.

    Seeds that did not count as later than all others: the median is None where half or more did not.
    """
    first = []
    for seed in range(len(row["shares"][0])):
        hits = [i for i, own in zip(row["iterations"], row["shares"], strict=True) if own[seed] >= mark]
        first.append(hits[0] if hits else float("inf"))
    middle = statistics.median(first)
    known = middle != float("inf")
    return {
        "seeds": sum(i != float("inf") for i in first),
        "median_steps": int(middle * N_ENVS * HORIZON) if known else None,
        "median_cpu_seconds": middle * row["cpu_seconds_per_iteration"] if known else None,
    }


def merged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Several populations of one agent in one cell as one: their seeds side by side, their seconds' mean over seeds."""
    total = sum(len(row["seeds"]) for row in rows)
    seconds = sum(row["cpu_seconds_per_iteration"] * len(row["seeds"]) for row in rows) / total
    shares = [list(itertools.chain(*own)) for own in zip(*(row["shares"] for row in rows), strict=True)]
    return {**rows[0], "shares": shares, "cpu_seconds_per_iteration": seconds, "seeds": total}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each cell that both agents were run in."""
    lines = []
    for ic, cost, action in CELLS:
        here = [r for r in rows if (r["ic"], r["cost_bps"], r["action"]) == (ic, cost, action)]
        if {r["agent"] for r in here} != {"shac", "ppo"}:
            continue
        own = {name: merged([r for r in here if r["agent"] == name]) for name in ("shac", "ppo")}
        line: dict[str, Any] = {"action": action, "ic": ic, "cost_bps": cost}
        for name, row in own.items():
            line[name] = {f"to_{mark:.0%}": reached(row, mark) for mark in MARKS}
            line[name]["seeds"] = row["seeds"]
            line[name]["last_share_mean"] = statistics.fmean(row["shares"][-1])
        times = [line[name]["to_80%"]["median_cpu_seconds"] for name in ("ppo", "shac")]
        line["ppo_seconds_over_shac_seconds_to_80%"] = None if None in times else times[0] / times[1]
        if times[0] is None and times[1] is not None:  # PPO was still short of it when its time was up
            line["at_least"] = own["ppo"]["cpu_seconds_per_iteration"] * ITERATIONS / times[1]
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--together", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("shac.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(options.output.read_text()) if options.output.exists() else {"rows": []}
    rows = known["rows"]
    done = {(r["agent"], r["ic"], r["cost_bps"], r["action"], seed) for r in rows for seed in r["seeds"]}
    groups = [list(range(options.seeds))[i : i + options.together] for i in range(0, options.seeds, options.together)]
    todo = [(name, *cell, own) for cell in CELLS for own in groups for name in ("shac", "ppo")]
    todo = [(*run, own) for *run, own in todo if not all((*run, seed) in done for seed in own)]
    until = time.monotonic() + 60 * options.minutes
    while todo and time.monotonic() < until:
        name, ic, cost, action, seeds = todo.pop(0)
        began = time.monotonic()
        rows.append(curve(name, Planted(ic, cost), action, seeds))
        write_json(
            options.output, {"machine": machine_facts(torch.device("cpu")), "summary": summary(rows), "rows": rows}
        )
        last = statistics.fmean(rows[-1]["shares"][-1])
        print(
            f"{name} {action} ic {ic} cost {cost}: {last:.2f} of the best, {time.monotonic() - began:.0f} s", flush=True
        )
        if time.monotonic() + 1.2 * (time.monotonic() - began) > until:
            break  # the next would not end in time
    print(f"{len(todo)} of {2 * len(CELLS) * len(groups)} runs are left")


if __name__ == "__main__":
    main()
