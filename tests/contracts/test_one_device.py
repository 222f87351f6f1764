"""Exploring and learning keep to their device, shown where there is no other: see `tests.reference.elsewhere`."""

from __future__ import annotations

import pytest
import torch

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca, VectorizedStockEnvAlpaca
from environments.data.source import load_bars
from environments.market import Market
from tests.reference.elsewhere import THERE, Mover, watched

STEPS = 6
CASES = {
    "plain": {},
    "all costs, lag": {"env": {"slippage_bps": 5.0, "impact_coef": 0.1, "spread_bps": 2.0, "decision_lag": 2}},
    "costs of members": {"env": {"commission_bps": [1.0, 9.0], "reward": ["excess:1,cvar:1", "excess:2,cvar:0.5"]}},
    "weights, lookback": {"env": {"action": "weights", "lookback": 4}},
    "regimes": {"env": {"action": "regimes"}},
    "shared clocks": {"env": {"clock_groups": 3}, "hyper": {"group_baseline": True}},
    "critic": {"hyper": {"critic_epochs": 2, "critic_learning_rate": 1e-3, "target_kl": 0.01, "anneal_lr": True}},
    "half precision": {"hyper": {"amp": "fp16"}},
    "gru": {"spec": {"network": "gru"}},
    "transformer": {"spec": {"network": "lightweight"}, "env": {"lookback": 4}},
    "per asset": {"spec": {"per_asset": True}},
    "quantiles": {"spec": {"normalizer": "quantile"}},
    "margin": {"kind": "stock", "env": {"margin": 2.0, "shorting": True, "participation": 0.1}},
}


def made(kind: str = "crypto", env: dict | None = None, spec: dict | None = None, hyper: dict | None = None):
    options = {"kind": "gbm", "n_bars": 120, "n_assets": 2, "asset_class": kind}
    market = Market.from_bars(load_bars("synthetic", options=options, seed=1))
    world = {"crypto": VectorizedCryptoEnvAlpaca, "stock": VectorizedStockEnvAlpaca}[kind]
    vec = world(market, 12, n_members=2, episode_length=13, seed=[1, 2], **(env or {}))
    own = {"horizon_len": STEPS, "num_minibatches": 2, "update_epochs": 2, "compile": "off", **(hyper or {})}
    agent = AgentPPO(PolicySpec.of(vec, hidden=(8, 8), **(spec or {})), PPOConfig(**own), (3, 4))
    agent.policy.fit_normalizer(vec)
    agent.looks = False  # as on any device but the CPU
    return agent, vec


@pytest.mark.parametrize("case", CASES)
def test_nothing_leaves_the_device(case):
    """All steps of a rollout and all of an update: no value is asked for, and nothing crosses or meets the host's."""
    agent, env = made(**CASES[case])
    rollout, noise = agent._begin(env, STEPS)
    if agent.policy.memory_size:
        agent._memory = rollout.keep_memory(agent.policy.initial_memory(6, agent.noise_generators))
    slots = 6 if agent.policy.memory_size else 6 * STEPS // env.envs_per_clock
    orders = agent.orders(slots, 2), agent.orders(slots, agent.config.critic_epochs)
    explored = [agent.windows(env.rows), rollout, agent._observation, agent._memory, noise, env.draws(STEPS)]
    rates = [agent.hyper["learning_rate"], agent.critic_rate()]
    mover = Mover()
    agent, env, explored, rates, orders = (mover.move(thing) for thing in (agent, env, explored, rates, orders))
    with watched() as crossings:
        with torch.no_grad():
            after, _ = agent._fill(env, *explored)
        figures = agent._learn(*explored[:2], *rates, *orders)
    assert crossings == []
    assert {x.device for x in (after.state, after.bar, *figures.values())} == {THERE}


def test_what_crosses_is_found():
    """The check can fail."""
    x = torch.ones(3, device=THERE)
    for what in (lambda: torch.ones(3).to(THERE), lambda: x[torch.tensor([0, 1])], lambda: x.copy_(torch.ones(3))):
        with watched() as crossings:
            what()
        assert len(crossings) == 1
    with watched(), pytest.raises(RuntimeError):
        bool(x.sum() > 0)
    agent, env = made()
    rollout = agent.explore_env(env, STEPS)
    agent.looks = True
    agent, rollout = map(Mover().move, (agent, rollout))
    with watched(), pytest.raises((RuntimeError, NotImplementedError)):
        agent.advantages(rollout)
