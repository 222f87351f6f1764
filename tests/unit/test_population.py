"""A member of a population becomes what it becomes alone."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import PolicySpec
from drl_agents.networks.population import member_state
from drl_agents.training.trainer import Budget, TrainingDiverged, train
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.market import Market
from environments.rules import AssetRule, RuleBook

SEEDS = (3, 14, 15)
SEGMENTS = [[(0, 150)], [(100, 250)], [(50, 120), (200, 300)]]
OWN = {
    "learning_rate": (1e-3, 3e-4, 3e-3),
    "gamma": (0.9, 0.99, 0.5),
    "gae_lambda": (0.95, 0.5, 1.0),
    "clip_coef": (0.2, 0.1, 0.3),
    "ent_coef": (0.0, 0.01, 0.001),
    "vf_coef": (0.5, 1.0, 0.25),
    "max_grad_norm": (0.5, 5.0, 0.05),
    "reward_scale": (1.0, 0.1, 2.0),
}
# Steps of a power of two: shares stay multiples. With the venue's 1e-9 a full sale leaves nothing or one
# step, as the last digit has it, and so a profit is seen or none: training then drifts apart.
EXACT = AssetRule(increment=2**-20, min_quantity=2**-20, min_notional=10.0)
SHARED = {"horizon_len": 16, "num_minibatches": 2, "update_epochs": 3}


@pytest.fixture(scope="module")
def market() -> Market:
    torch.set_num_threads(1)
    bars = load_bars("synthetic", options={"kind": "momentum", "n_bars": 300, "n_assets": 2}, seed=1)
    return Market.from_bars(bars)


def build(market: Market, members: list[int], **config) -> tuple[AgentPPO, VectorizedCryptoEnvAlpaca]:
    """The given members, side by side; hyper-parameters given as tuples are picked member by member."""
    seeds = [SEEDS[p] for p in members]
    env = VectorizedCryptoEnvAlpaca(
        market,
        4 * len(members),
        n_members=len(members),
        segments=[SEGMENTS[p] for p in members],
        episode_length=20,
        lookback=2,
        rules=RuleBook(market.asset_class, dict.fromkeys(market.symbols, EXACT)),
        seed=seeds,
    )
    chosen = {k: tuple(v[p] for p in members) if isinstance(v, tuple) else v for k, v in config.items()}
    agent = AgentPPO(PolicySpec.of(env, hidden=(16, 16)), PPOConfig(**SHARED, **chosen), seeds)
    agent.policy.row_normalizer.set(*env.normalizer_stats())
    return agent, env


def test_a_member_of_three_equals_the_same_alone(market):
    updates = Budget(iterations=50)
    together, env = build(market, [0, 1, 2], **OWN)
    start = together.parameters.values.clone()
    figures = train(together, env, updates).figures
    for p in range(3):
        alone, env = build(market, [p], **OWN)
        own = train(alone, env, updates).figures
        moved = (together.parameters.values[p] - start[p]).abs().max()
        assert moved > 1e-2  # it learned something, so the comparison means something
        for name, value in alone.policy.state_dict().items():
            assert_close(member_state(together.policy, p)[name], value, rtol=0, atol=1e-4)
        for name, (value,) in own.items():
            assert figures[name][p] == pytest.approx(value, rel=1e-2, abs=1e-3), name


def test_early_stop_is_each_members_own(market):
    """Member 0 stops after its first pass over the samples, member 1 never, member 2 somewhere in between."""
    limits = (1e-6, 1e6, 2e-4)
    updates, hyper = 20, {**OWN, "learning_rate": (1e-2, 3e-4, 3e-3)}
    together, env = build(market, [0, 1, 2], **hyper, target_kl=limits)
    train(together, env, Budget(iterations=updates))
    steps = together.optimizer.count.flatten().tolist()
    assert steps[:2] == [2 * updates, 3 * 2 * updates] and steps[0] < steps[2] < steps[1]
    for p in range(3):
        # Alone it ends its update and with it the passes; what it draws afterwards must not shift.
        alone, env = build(market, [p], **hyper, target_kl=limits)
        train(alone, env, Budget(iterations=updates))
        assert alone.optimizer.count.item() == steps[p]
        assert_close(alone.parameters.values[0], together.parameters.values[p], rtol=0, atol=1e-4)


def test_a_member_that_breaks_leaves_the_others_bit_for_bit(market):
    agents = []
    for broken in (False, True):
        agent, env = build(market, [0, 1, 2], **OWN)
        for _ in range(3):
            rollout = agent.explore_env(env, 16)
            if broken:
                rollout.reward[:, 4:8] = torch.nan
            figures = agent.update(rollout)
        agents.append(agent)
    healthy, hurt = (agent.parameters.values for agent in agents)
    assert torch.equal(healthy[0], hurt[0]) and torch.equal(healthy[2], hurt[2])
    assert figures["skipped_updates"].tolist() == [0, 1, 0]
    assert hurt[1].isfinite().all() and agents[1].optimizer.count[1] == 0


def test_a_broken_member_is_named(market):
    agent, env = build(market, [0, 1], **OWN)
    update = agent.update

    def poisoned(rollout):
        rollout.reward[:, 4:] = torch.nan
        return update(rollout)

    agent.update = poisoned
    with pytest.raises(TrainingDiverged, match="iteration 1, member 1"):
        train(agent, env, Budget(iterations=2))
