"""What each network learns of markets whose best policy is known, and what a critic of its own explains; writes
networks.json.

    python -m tests.benchmarks.networks [--minutes 5] [--only TEXT] [--output FILE]

PPO, one agent at a time. Trading is free, so the best policy is the best choice of every bar
(`tests/reference/planted.py`):

    shown         one asset, whose signal the last bar shows
    delayed       one asset, whose signal was shown two bars ago and not since: in one bar there is nothing to know
    eight assets  as shown, each with a signal of its own: the best is to hold the one with the largest

A share is what a policy earns on bars it was not trained on, the chance of the bars averaged out, of what the best one
earns there. Seconds are of one thread's CPU time in exploring and updating. The rows of "critic" hold what the values
explain of each update's returns, before it and after: with one optimiser for policy and values, and with one of the
critic's own and four more epochs. What is in the file already is not run again: each call goes on for as many minutes
as it is given, with the runs whose name begins with TEXT, and says what is left.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.benchmark.machine import machine_facts
from drl_agents.networks.spec import PolicySpec
from environments.files import write_json
from environments.market import Market
from environments.market_env import MarketVecEnv
from tests.reference.planted import Planted, best_without_costs, gains, walking

TRAIN, TEST, WALKS = 40_000, 4_000, 16
N_ENVS, HORIZON, ITERATIONS, HIDDEN = 64, 64, 24, (64, 64)
SEEDS, CRITIC_SEEDS = (1, 2, 3), (1, 2, 3, 4, 5)
MARKETS = {
    "shown": Planted(ic=0.2, cost_bps=0.0),
    "delayed": Planted(ic=0.4, cost_bps=0.0, rho=0.0, delay=2),
    "eight assets": Planted(ic=0.2, cost_bps=0.0, n_assets=8),
}
# Beside the options of the network: its learning rate where it is another, fewer iterations of what is dear, and clocks
# that environments share where what they see is embedded once for all of them.
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"options": {}},
    "gru": {"options": {"network": "gru", "hidden_dim": 64, "n_gru_layers": 1, "dropout": 0.0}, "learning_rate": 3e-3},
    "lightweight": {"options": {"network": "lightweight"}, "clock_groups": 8},
    "transformer": {"options": {"network": "transformer"}, "clock_groups": 8, "iterations": 6},
    "per-asset": {"options": {"per_asset": True}},
}
CELLS = (
    ("delayed", "mlp", 1), ("delayed", "mlp", 4), ("delayed", "gru", 1), ("delayed", "lightweight", 4),
    ("shown", "mlp", 1), ("shown", "gru", 1), ("shown", "lightweight", 4),
    ("eight assets", "mlp", 1), ("eight assets", "per-asset", 1),
    ("delayed", "transformer", 4), ("shown", "transformer", 4),
)  # fmt: skip
CRITICS: dict[str, dict[str, Any]] = {
    "one optimiser": {"learning_rate": 3e-4},
    "its own, 9e-4, 4 epochs more": {"learning_rate": 3e-4, "critic_learning_rate": 9e-4, "critic_epochs": 4},
}


def prepared(
    planted: Planted, market: Market, network: dict[str, Any], lookback: int, seed: int, config: dict[str, Any]
) -> tuple[AgentPPO, MarketVecEnv]:
    """An agent with its training environment."""
    env = MarketVecEnv(
        market, N_ENVS, segments=[(0, TRAIN)], seed=seed, lookback=lookback, clock_groups=network.get("clock_groups"),
        **planted.env_options(),
    )  # fmt: skip
    spec = PolicySpec.of(env, hidden=HIDDEN, **network["options"])
    agent = AgentPPO(spec, PPOConfig(horizon_len=HORIZON, gamma=0.9, **config), (seed,))
    agent.policy.fit_normalizer(env)
    return agent, env


def share(name: str, kind: str, lookback: int, seed: int) -> dict[str, Any]:
    """Train a network, then walk the bars after those."""
    planted, network = MARKETS[name], NETWORKS[kind]
    market = planted.market(TRAIN + TEST, seed=1)
    config = {"learning_rate": network.get("learning_rate", 1e-3), "group_baseline": "clock_groups" in network}
    agent, env = prepared(planted, market, network, lookback, seed, config)
    iterations = network.get("iterations", ITERATIONS)
    began = time.process_time()
    for _ in range(iterations):
        agent.update(agent.explore_env(env, HORIZON))
    seconds = time.process_time() - began
    walk = walking(planted, market, (TRAIN, TRAIN + TEST), WALKS, 1, "weights", lookback)
    return {
        "options": network["options"], "config": config, "clock_groups": network.get("clock_groups"),
        "steps": iterations * N_ENVS * HORIZON,
        "share": round(gains(planted, walk, agent.decide).item() / best_without_costs(planted, walk), 4),
        "cpu_seconds": round(seconds, 1),
    }  # fmt: skip


def explained(kind: str, seed: int, iterations: int = 20) -> dict[str, Any]:
    """Explained variance of every update's returns, by the values before it and by those after it."""
    planted = MARKETS["shown"]
    agent, env = prepared(planted, planted.market(TRAIN, seed=1), NETWORKS["mlp"], 1, seed, CRITICS[kind])
    before, after = [], []
    began = time.process_time()
    for _ in range(iterations):
        rollout = agent.explore_env(env, HORIZON)
        _, returns, value = agent.advantages(rollout)
        agent.update(rollout)
        for known, own in ((before, value), (after, agent.advantages(rollout)[2])):
            known.append(round(1 - ((returns - own).var() / returns.var()).item(), 4))
    return {
        "config": CRITICS[kind], "steps": iterations * N_ENVS * HORIZON, "before": before, "after": after,
        "cpu_seconds": round(time.process_time() - began, 1),
    }  # fmt: skip


def runs() -> dict[str, Any]:
    """{name: what makes the row}."""
    table: dict[str, Any] = {}
    for seed in SEEDS:  # by seed first, so that what is broken off has something of every cell
        for cell in CELLS:
            table[f"{cell[0]}, {cell[1]}, lookback {cell[2]}, seed {seed}"] = (share, *cell, seed)
    for seed in CRITIC_SEEDS:
        for kind in CRITICS:
            table[f"critic, {kind}, seed {seed}"] = (explained, kind, seed)
    return table


def summary(rows: dict[str, Any]) -> dict[str, Any]:
    """Each cell's mean share, least share and mean seconds; each critic's mean explained variance over the last half of
    the updates."""
    lines = {}
    for cell in CELLS:
        name = f"{cell[0]}, {cell[1]}, lookback {cell[2]}"
        own = [row for key, row in rows.items() if key.startswith(f"{name}, seed ")]
        if own:
            shares = [row["share"] for row in own]
            lines[name] = {
                "seeds": len(own), "steps": own[0]["steps"], "share": round(statistics.fmean(shares), 3),
                "least": min(shares), "cpu_seconds": round(statistics.fmean(row["cpu_seconds"] for row in own), 1),
            }  # fmt: skip
    for kind in CRITICS:
        own = [row for key, row in rows.items() if key.startswith(f"critic, {kind}, seed ")]
        if own:
            late = {
                when: round(statistics.fmean(statistics.fmean(row[when][len(row[when]) // 2 :]) for row in own), 4)
                for when in ("before", "after")
            }
            lines[f"critic, {kind}"] = {"seeds": len(own), "steps": own[0]["steps"], **late}
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--only", default="")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("networks.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(options.output.read_text(encoding="utf-8"))["rows"] if options.output.exists() else {}
    todo = {name: run for name, run in runs().items() if name.startswith(options.only) and name not in rows}
    until = time.monotonic() + 60 * options.minutes
    while todo and time.monotonic() < until:
        name = next(iter(todo))
        make, *arguments = todo.pop(name)
        rows[name] = make(*arguments)
        known = {key: rows[key] for key in runs() if key in rows}
        facts = {"machine": machine_facts(torch.device("cpu")), "summary": summary(known), "rows": known}
        write_json(options.output, facts)
        shown = {key: value for key, value in rows[name].items() if key in ("share", "after", "cpu_seconds")}
        print(name, json.dumps(shown), flush=True)
    print(f"{len(todo)} runs are left")


if __name__ == "__main__":
    main()
