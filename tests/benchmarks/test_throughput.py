"""Steps per second: the environment, the rollout, the update, the whole loop; and what vectorising is worth.

Every benchmark's `extra_info` holds `steps`, environment steps of one round, and `steps_per_second` at the
median.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import PolicySpec
from environments.checker import random_actions
from environments.data.source import load_bars
from environments.market import Market
from environments.plugin import build_env
from environments.vec_env import VecEnv

HORIZON = 64
LEAST_SPEED_UP = 5.0
MOST_FOR_FRICTIONS = 1.5
MOST_ON_MARGIN = 1.75  # 1.4 before what is sold short was rounded to whole shares, 1.6 with it
FREE = {"commission_bps": 25.0, "spread_bps": 0.0, "slippage_bps": 0.0, "impact_coef": 0.0}
ALL = {"commission_bps": 25.0, "participation": 0.1}
BORROWED = {"margin": 2.0, "shorting": True, "borrow_bps": 300.0, "margin_rate_bps": 600.0}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def market() -> Market:
    bars = load_bars("synthetic", options={"kind": "gbm", "n_bars": 3_000, "n_assets": 8}, seed=1)
    return Market.from_bars(bars)


def vectorised(market: Market, n_envs: int) -> VecEnv:
    return build_env("VectorizedCryptoEnvAlpaca", market, n_envs, episode_length=500)


def agent_for(env: VecEnv) -> AgentPPO:
    agent = AgentPPO(PolicySpec.of(env), PPOConfig(horizon_len=HORIZON, num_minibatches=4, update_epochs=2))
    if agent.policy.row_normalizer is not None:
        agent.policy.row_normalizer.set(*env.normalizer_stats())
    return agent


def measure(benchmark, call, steps: int, rounds: int = 5) -> None:
    benchmark.pedantic(call, rounds=rounds, warmup_rounds=1)
    if benchmark.stats is not None:  # None with --benchmark-disable
        rate = steps / benchmark.stats.stats.median
        benchmark.extra_info.update(steps=steps, steps_per_second=round(rate))
        assert rate > 0


@pytest.mark.parametrize("n_envs", [1, 12, 64, 1024])
def test_environment(benchmark, market, n_envs):
    env = vectorised(market, n_envs)
    env.reset(0)
    action = random_actions(env, torch.Generator().manual_seed(0))

    def walk() -> None:
        for _ in range(100):
            env.step(action)

    measure(benchmark, walk, 100 * n_envs)


@pytest.mark.parametrize("n_envs", [12, 1024])
def test_rollout(benchmark, market, n_envs):
    env = vectorised(market, n_envs)
    agent = agent_for(env)
    measure(benchmark, lambda: agent.explore_env(env, HORIZON), HORIZON * n_envs, rounds=3)


@pytest.mark.parametrize("n_envs", [12, 1024])
def test_update(benchmark, market, n_envs):
    env = vectorised(market, n_envs)
    agent = agent_for(env)
    rollout = agent.explore_env(env, HORIZON)
    measure(benchmark, lambda: agent.update(rollout), HORIZON * n_envs, rounds=2 if n_envs > 100 else 5)


@pytest.mark.parametrize("n_envs", [12, 64])
def test_whole_loop(benchmark, market, n_envs):
    env = vectorised(market, n_envs)
    agent = agent_for(env)
    measure(benchmark, lambda: agent.update(agent.explore_env(env, HORIZON)), HORIZON * n_envs, rounds=3)


def test_twelve_at_once_beat_twelve_one_by_one(market):
    """The same loop over `CryptoEnvAlpaca` run 12 times; measured in turns, so that load hits both."""
    envs = vectorised(market, 12), build_env("CryptoEnvAlpaca", market, 12, episode_length=500)
    agents = [agent_for(env) for env in envs]

    def seconds(i: int) -> float:
        started = time.perf_counter()
        agents[i].update(agents[i].explore_env(envs[i], HORIZON))
        return time.perf_counter() - started

    for i in (0, 1):
        seconds(i)
    ratios = [seconds(1) / seconds(0) for _ in range(5)]
    assert statistics.median(ratios) >= LEAST_SPEED_UP, ratios


@pytest.mark.parametrize(
    ("asset_class", "own"),
    [("crypto", {}), ("crypto", {"impact_reference": "volume"}), ("stock", BORROWED)],
    ids=["crypto", "impact by volume", "stocks on margin"],
)
def test_frictions_cost_no_more_than_they_must(asset_class, own):
    """Environment steps of 1,024 with every friction against commission alone, in turns, by the thread's own clock."""
    options = {"kind": "gbm", "n_bars": 3_000, "n_assets": 10, "asset_class": asset_class}
    market = Market.from_bars(load_bars("synthetic", options=options, seed=1))
    kind = "VectorizedCryptoEnvAlpaca" if asset_class == "crypto" else "VectorizedStockEnvAlpaca"
    envs = [build_env(kind, market, 1024, episode_length=500, **costs) for costs in (FREE, {**ALL, **own})]
    actions = [random_actions(env, torch.Generator().manual_seed(0)) for env in envs]

    def seconds(i: int, steps: int = 15) -> float:
        started = time.thread_time()
        for _ in range(steps):
            envs[i].step(actions[i])
        return time.thread_time() - started

    for i in (0, 1):
        seconds(i)
    turns = [(seconds(0), seconds(1)) for _ in range(25)]
    # The quickest of each: other work on the machine makes a turn longer, never shorter.
    bare, full = (min(own) for own in zip(*turns, strict=True))
    print(f"{asset_class} {own}: ratio {full / bare:.2f}, median {statistics.median(b / a for a, b in turns):.2f}")
    assert full / bare <= (MOST_ON_MARGIN if "margin" in own else MOST_FOR_FRICTIONS), turns
