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
from environments.errors import InputError
from environments.market import Market
from environments.market_env import MarketVecEnv
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
COSTS = {
    "commission_bps": (0.0, 25.0, 10.0),
    "spread_bps": (2.0, 0.0, 8.0),
    "slippage_bps": (5.0, 20.0, 0.0),
    "impact_coef": (0.1, 0.0, 0.01),
    "reward": (
        "excess:1,turnover:0.1,drawdown:2",
        "excess:1,turnover:0.5,drawdown:1",
        "excess:3,turnover:1,drawdown:1",
    ),
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


def picked(options: dict, members: list[int]) -> dict:
    """Options given as tuples, as lists of the members' own; a member alone gets its own as it is."""
    own = {k: [v[p] for p in members] if isinstance(v, tuple) else v for k, v in options.items()}
    return {k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in own.items()}


def build(
    market: Market, members: list[int], options: dict | None = None, **config
) -> tuple[AgentPPO, VectorizedCryptoEnvAlpaca]:
    """The given members, side by side; what is given as a tuple is picked member by member.

    options: of the environment.
    """
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
        **picked(options or {}, members),
    )
    chosen = {k: tuple(v[p] for p in members) if isinstance(v, tuple) else v for k, v in config.items()}
    agent = AgentPPO(PolicySpec.of(env, hidden=(16, 16)), PPOConfig(**SHARED, **chosen), seeds)
    agent.policy.row_normalizer.set(*env.normalizer_stats())
    return agent, env


def test_a_member_of_three_equals_the_same_alone(market):
    """Hyper-parameters, costs and reward weights are each member's own."""
    updates = Budget(iterations=50)
    together, env = build(market, [0, 1, 2], COSTS, **OWN)
    start = together.parameters.values.clone()
    figures = train(together, env, updates).figures
    for p in range(3):
        alone, env = build(market, [p], COSTS, **OWN)
        own = train(alone, env, updates).figures
        moved = (together.parameters.values[p] - start[p]).abs().max()
        assert moved > 1e-2  # it learned something, so the comparison means something
        for name, value in alone.policy.state_dict().items():
            assert_close(member_state(together.policy, p)[name], value, rtol=0, atol=1e-4)
        for name, (value,) in own.items():
            assert figures[name][p] == pytest.approx(value, rel=1e-2, abs=1e-3), name


STOCKS = {"margin": 2.0, "shorting": True, "borrow_bps": 300.0, "margin_rate_bps": 500.0}


@pytest.mark.parametrize(
    ("asset_class", "options"),
    [
        ("crypto", {}),
        ("crypto", {"fee_in": "quote", "impact_reference": "volume", "participation": 0.01}),
        ("stock", STOCKS),
        ("stock", {**STOCKS, "impact_reference": "volume"}),
    ],
)
def test_each_member_pays_and_earns_what_it_does_alone_bit_for_bit(asset_class, options, make_market, random_bars):
    """Where one pays a cost that another does not, both go through its formula: times zero it adds nothing."""
    market = make_market({"A": random_bars(1, 300), "B": random_bars(2, 300)}, asset_class=asset_class)
    actions = 2 * torch.rand(80, 3, 4, 2, generator=torch.Generator().manual_seed(1)) - 1

    def walked(members: list[int]) -> list[torch.Tensor]:
        env = MarketVecEnv(
            market, 4 * len(members), n_members=len(members), segments=[SEGMENTS[p] for p in members], max_trade=1.0,
            episode_length=30, seed=[SEEDS[p] for p in members], **options, **picked(COSTS, members),
        )  # fmt: skip
        seen = []
        for t in range(80):
            step = env.step(actions[t, members].flatten(0, 1))
            seen.append(torch.stack([step.reward, env.last_equity, env.fees, env.account.shares.sum(1)]))
        return torch.stack(seen).unflatten(2, (len(members), 4))

    together = walked([0, 1, 2])
    fees = together[:, 2].sum((0, 2))
    assert fees.unique().numel() == 3 and (fees > 0).all()
    for p in range(3):
        assert torch.equal(walked([p])[:, :, 0], together[:, :, p])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spread_bps": [1.0, 2.0]}, "spread_bps: 2 values for 3 members"),
        ({"commission_bps": [1.0, 2.0, -1.0]}, "commission_bps=-1.0: accepted are 0 <= value < 1000"),
        ({"reward": ["excess", "excess:2", "turnover:1"]}, "rewards of one population: turnover beside excess"),
        ({"fee_in": ["quote", "quote", "received"]}, "accepted are members that differ in commission_bps, spread_bps"),
    ],
)
def test_what_members_cannot_have_of_their_own_is_refused(market, options, message):
    with pytest.raises(InputError, match=message):
        MarketVecEnv(market, 3, n_members=3, **options)


def test_what_members_agree_in_stays_a_number(market):
    env = MarketVecEnv(
        market, 4, n_members=2, spread_bps=[3.0, 3.0], impact_coef=[None, 0.01], slippage_bps=[1.0, None]
    )
    assert (env.frictions.spread_bps, env.frictions.impact_coef) == (3.0, 0.01)
    assert env.frictions.slippage_bps.tolist() == [[1.0], [1.0], [5.0], [5.0]]


def test_early_stop_is_each_members_own(market):
    """Member 0 stops after its first pass over the samples, member 1 never, member 2 somewhere in between."""
    limits = (1e-6, 1e6, 2e-4)
    updates, hyper = 10, {**OWN, "learning_rate": (1e-2, 3e-4, 3e-3)}
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
