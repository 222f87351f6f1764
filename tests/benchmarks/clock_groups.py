"""Whether clock groups bring an agent to a planted edge sooner; writes clock_groups.json.

    python -m tests.benchmarks.clock_groups [--minutes 10] [--seeds 10] [--together 5] [--output FILE]

PPO with 2,048 environments x 8 steps on ten assets, each with a visible signal that leads its next return, trading
free. Every arm has the same seeds, and is walked over bars it was not trained on: its share is its log growth there
over that of the best policy, all in the asset of the highest positive signal. The seconds of an iteration are of one
agent alone, compiled, arms in turns, one thread's CPU time. An arm's time to a share is the iterations its seeds needed
times its seconds. What is in the file already is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from drl_agents.agents.ppo import AgentPPO
from drl_agents.benchmark.machine import machine_facts
from drl_agents.benchmark.work import Configuration, Work, build_agent
from drl_agents.evaluation.backtest import backtest
from environments.data.source import load_bars
from environments.files import write_json
from environments.market import Market
from environments.market_env import MarketVecEnv

N_ENVS, ITERATIONS, TIMINGS = 2_048, 40, 7
SPLIT, END = 18_000, 19_500
EDGE = {"kind": "signal", "n_bars": END, "n_assets": 10, "sigma": 0.01, "ic": 0.2, "rho": 0.9}
OWN = {"max_trade": 1.0, "reward": "log_return"}
ARMS: dict[str, Configuration] = {
    name: Configuration(name, N_ENVS, env=env, agent=agent)
    for name, env, agent in (
        ("every environment its own clock", {}, {}),
        ("64 clocks", {"clock_groups": 64}, {}),
        ("64 clocks, group baseline", {"clock_groups": 64}, {"group_baseline": True}),
    )
}
MARKS = (0.3, 0.4, 0.5)


def training(arm: Configuration, market: Market, seeds: list[int], compile: str) -> tuple[AgentPPO, MarketVecEnv]:
    """A population with a member for each seed, and the environments it learns in."""
    work = Work(commission_bps=0.0)
    options = {"episode_length": work.episode_length, **work.costs(), **OWN, **arm.env}
    env = MarketVecEnv(market, N_ENVS * len(seeds), n_members=len(seeds), segments=[(0, SPLIT)], seed=seeds, **options)
    compiled = Configuration(arm.name, arm.n_envs, agent={**arm.agent, "compile": compile})
    return build_agent(compiled, work, env, seeds, learning_rate=1e-3, gamma=0.9), env


def shares(agent: AgentPPO, market: Market) -> list[float]:
    """Log growth over the bars after SPLIT, for every member, over the best policy's."""
    own = {**Work(commission_bps=0.0).costs(), **OWN}
    n = agent.n_members
    walk = MarketVecEnv(
        market, 2 * n, n_members=n, segments=[(SPLIT, END)], random_start=False, episode_length=None, **own
    )
    columns = [i for i, name in enumerate(walk.features.names) if name == "signal"]
    place = torch.arange(10) * len(walk.features.names) + columns[0]

    def both(x: torch.Tensor) -> torch.Tensor:
        signal = x[:, 1:, place]
        highest = (signal == signal.amax(-1, keepdim=True)) & (signal > 0)
        return torch.cat([agent.decide(x[:, :1]).float(), torch.where(highest, 1.0, -1.0)], dim=1)

    growth = [math.log(result.equity[-1] / walk.initial_cash) for result in backtest(walk, both)]
    return [growth[2 * i] / growth[2 * i + 1] for i in range(n)]


def learning_curve(name: str, seeds: list[int]) -> dict[str, Any]:
    """Shares of the best after each of the iterations judged, (iterations, members)."""
    market = Market.from_bars(load_bars("synthetic", options=EDGE, seed=1))
    agent, env = training(ARMS[name], market, seeds, "off")
    judged, found = [], []
    for iteration in range(1, ITERATIONS + 1):
        agent.update(agent.explore_env(env, agent.config.horizon_len))
        if iteration <= 10 or iteration % 2 == 0:
            judged.append(iteration)
            found.append([round(x, 4) for x in shares(agent, market)])
    return {"arm": name, "seeds": seeds, "iterations": judged, "shares": found}


def seconds_of_an_iteration() -> dict[str, list[float]]:
    """CPU seconds of `TIMINGS` iterations of each arm, one agent alone, compiled, in turns, after two not counted."""
    market = Market.from_bars(load_bars("synthetic", options=EDGE, seed=1))
    built = {name: training(arm, market, [0], "on") for name, arm in ARMS.items()}
    taken: dict[str, list[float]] = {name: [] for name in ARMS}
    for turn in range(TIMINGS + 2):
        for name, (agent, env) in built.items():
            began = time.process_time()
            agent.update(agent.explore_env(env, agent.config.horizon_len))
            if turn > 1:
                taken[name].append(time.process_time() - began)
    return taken


def summary(rows: list[dict[str, Any]], seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """For each arm the median iteration at which its seeds first came to each mark, and the seconds that is."""
    lines = []
    for name in ARMS:
        own = [row for row in rows if row["arm"] == name]
        if not own:
            continue
        each = statistics.median(seconds[name])
        curves = [[at[i] for at in row["shares"]] for row in own for i in range(len(row["seeds"]))]
        line: dict[str, Any] = {"arm": name, "seeds": len(curves), "cpu_seconds_per_iteration": each}
        line["last_share_mean"] = statistics.fmean(curve[-1] for curve in curves)
        line["last_share_standard_error"] = statistics.stdev(c[-1] for c in curves) / math.sqrt(len(curves))
        for mark in MARKS:
            firsts = [
                next((i for i, x in zip(own[0]["iterations"], curve, strict=True) if x >= mark), math.inf)
                for curve in curves
            ]
            middle = statistics.median(firsts)
            line[f"to_{mark:.0%}"] = {
                "seeds": sum(first < math.inf for first in firsts),
                "median_iterations": middle if middle < math.inf else None,
                "median_cpu_seconds": middle * each if middle < math.inf else None,
            }
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--together", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("clock_groups.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(options.output.read_text()) if options.output.exists() else {"rows": []}
    rows = known["rows"]
    seconds = known.get("cpu_seconds_of_iterations") or seconds_of_an_iteration()
    done = {(row["arm"], seed) for row in rows for seed in row["seeds"]}
    groups = [list(range(options.seeds))[i : i + options.together] for i in range(0, options.seeds, options.together)]
    todo = [(name, own) for own in groups for name in ARMS if not all((name, seed) in done for seed in own)]
    until, longest = time.monotonic() + 60 * options.minutes, 0.0
    while todo and time.monotonic() + longest < until:
        name, seeds = todo.pop(0)
        began = time.monotonic()
        rows.append(learning_curve(name, seeds))
        machine = machine_facts(torch.device("cpu"))
        found = summary(rows, seconds)
        write_json(
            options.output, {"machine": machine, "summary": found, "cpu_seconds_of_iterations": seconds, "rows": rows}
        )
        longest = max(longest, time.monotonic() - began)
        print(f"{name}: {statistics.fmean(rows[-1]['shares'][-1]):.2f} of the best, {longest:.0f} s", flush=True)
    print(f"{len(todo)} of {len(ARMS) * len(groups)} runs are left")


if __name__ == "__main__":
    main()
