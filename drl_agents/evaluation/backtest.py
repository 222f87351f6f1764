"""Back-test: a policy walks windows of a market from their first bar to their last.

It runs the training environment itself, so what is judged is what was trained: same fills, costs and rules.
All windows are walked side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from drl_agents.agents.base import AgentBase, steps_per_call
from drl_agents.evaluation.result import BacktestResult
from drl_agents.networks.player import Player
from environments.market_env import MarketVecEnv
from environments.observation import Observation, build_observation

Decide = Callable[[Tensor], Tensor]


@torch.no_grad()
def backtest(env: MarketVecEnv, decide: Decide, names: Sequence[str] | None = None) -> list[BacktestResult]:
    """Walk every environment's window once.

    Args:
        env: made with `random_start=False` and `episode_length=None`; environment i walks its window.
        decide: dense observations (P, n, D) -> actions (P, n, ...), such as `agent.decide`. A `Player` is begun anew:
            it remembers nothing of other walks.
        names: one per environment, for the reports.

    Returns:
        one result per environment: T + 1 closes for T bars walked. A walk ends early in ruin.
    """
    market, n, p = env.market, env.n_envs, env.n_members
    if isinstance(decide, Player):
        decide = decide.begin()
    observation = env.reset()
    start = observation.bar.cpu().numpy().copy()
    steps = int((env.stop - env.bar).max()) - 1
    equity = torch.empty(steps + 1, n, dtype=market.dtype, device=env.device)
    weights = torch.zeros(steps + 1, n, market.n_assets, dtype=market.dtype, device=env.device)
    fees, traded = (torch.empty(steps, n, dtype=market.dtype, device=env.device) for _ in range(2))
    orders = torch.empty(steps, n, dtype=torch.int64, device=env.device)
    done = torch.empty(steps, n, dtype=torch.bool, device=env.device)
    equity[0] = env.equity
    for t in range(steps):
        dense = build_observation(env.rows, observation, env.lookback).view(p, n // p, -1)
        step = env.step(decide(dense).flatten(0, 1))
        observation = step.observation
        equity[t + 1], fees[t], traded[t] = env.last_equity, env.fees, env.traded_value.sum(-1)
        orders[t] = (env.traded_value > 0).sum(-1)
        mark = market.mark[step.final_observation.bar]
        weights[t + 1] = env.last_shares * mark / env.last_equity.clamp(min=1e-12).unsqueeze(-1)
        done[t] = step.terminated | step.truncated
    length = done.int().argmax(dim=0).cpu().numpy() + 1
    stamps = market.timestamps.cpu().numpy()
    series = [x.cpu().numpy() for x in (equity, weights, fees, traded, orders)]
    results = []
    for i in range(n):
        last = int(length[i])
        results.append(
            BacktestResult(
                name=names[i] if names else f"window {i}",
                symbols=market.symbols,
                timestamps=stamps[start[i] : start[i] + last + 1],
                equity=series[0][: last + 1, i],
                weights=series[1][: last + 1, i],
                fees=series[2][:last, i],
                traded=series[3][:last, i],
                n_trades=int(series[4][:last, i].sum()),
                bars_per_year=market.bars_per_year,
                decision_lag=env.decision_lag,
            )
        )
    return results


@torch.no_grad()
def walk_returns(env: MarketVecEnv, agent: AgentBase) -> list[np.ndarray]:
    """The simple returns of each environment's walk, (T_i,) float64: `backtest` of an agent without its records.

    The agent's market embedding is computed once for all bars, and its steps are compiled where the agent's are.
    """
    n = env.n_envs
    observation = env.reset()
    steps = int((env.stop - env.bar).max()) - 1
    equity = torch.empty(steps + 1, n, dtype=env.market.dtype, device=env.device)
    done = torch.empty(steps, n, dtype=torch.bool, device=env.device)
    equity[0] = env.equity
    table, draws = agent.market_table(env, steps), env.draws(1)[0]
    memory = agent.policy.initial_memory(n // agent.n_members) if agent.policy.memory_size else None
    walk = agent.compiler(_walk) if agent.compiler.active else _walk
    stride = steps_per_call(n, steps) if agent.compiler.active else steps
    for first in range(0, steps, stride):
        own = slice(first, min(first + stride, steps))
        # The last steps, if they do not fill a call, are not worth another compilation.
        one = walk if own.stop - first == stride else _walk
        observation, memory = one(env, agent, observation, memory, table, draws, equity[1:][own], done[own])
    length = done.int().argmax(dim=0).cpu().numpy() + 1
    curve = equity.cpu().numpy()
    return [curve[1 : m + 1, i] / curve[:m, i] - 1 for i, m in enumerate(length)]


def _walk(
    env: MarketVecEnv,
    agent: AgentBase,
    observation: Observation,
    memory: Tensor | None,
    table: Tensor | None,
    draw: Tensor,
    equity: Tensor,
    done: Tensor,
) -> tuple[Observation, Tensor | None]:
    """As many steps as `equity` (T, N) and `done` (T, N) have rows, which are written to; what is seen after them, and
    what a policy that remembers knew before that."""
    for t in range(equity.shape[0]):
        with agent.precision():
            seen, memory = agent.recall(*agent.see(env, observation, table), memory)
            action = agent.best(*seen)
        step = env.advance(action.flatten(0, 1), draw)
        observation = step.observation
        equity[t].copy_(env.last_equity)
        done[t].copy_(step.terminated | step.truncated)
    return observation, memory
