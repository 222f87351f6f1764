"""SHAC on a market whose best policy is known: value iteration says what can be earned, and most of it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from drl_agents.agents.shac import AgentSHAC, SHACConfig
from drl_agents.networks.policy import PolicySpec
from drl_agents.training.trainer import Budget, train
from environments.market_env import MarketVecEnv
from tests.reference.planted import Planted, best_decision, best_without_costs, gains, optimum, walking

pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN, TEST = 60_000, 10_000


def test_without_costs_the_optimum_is_the_expected_positive_part():
    """Held exactly when the next return is positive on average: E[max(E[R | s], 0)], about sigma ic / sqrt(2 pi)."""
    planted = Planted(ic=0.05, cost_bps=0.0)
    best = optimum(planted)
    s = np.linspace(-8, 8, 20_001)
    density = np.exp(-(s**2) / 2) / math.sqrt(2 * math.pi)
    exact = float(np.sum(np.maximum(planted.expected_return(s), 0) * density) * (s[1] - s[0]))
    assert best.gain == pytest.approx(exact, rel=2e-3)
    assert best.gain == pytest.approx(planted.sigma * planted.ic / math.sqrt(2 * math.pi), rel=2e-3)
    assert set(np.unique(best.policy)) == {0.0, 1.0}


def test_costs_are_worth_waiting_for():
    """The best policy then trades at two thresholds and earns less; a finer grid changes nothing that matters."""
    free, paid = (optimum(Planted(ic=0.05, cost_bps=cost)) for cost in (0.0, 5.0))
    in_cash, invested = paid.policy[:, 0], paid.policy[:, -1]
    enter, leave = paid.signals[in_cash == 1].min(), paid.signals[invested == 0].max()
    assert leave < -0.2 and enter > 0.2 and paid.gain < 0.9 * free.gain
    assert optimum(Planted(0.05, 5.0), n_signals=321, n_positions=21).gain == pytest.approx(paid.gain, rel=2e-3)


def test_the_books_pay_what_value_iteration_promises():
    """The best policy, walked through the environment with its fills and fees, earns its gain; another policy less."""
    planted = Planted(ic=0.1, cost_bps=2.0)
    market, best = planted.market(40_000, seed=2), optimum(planted)
    env = walking(planted, market, (0, 40_000), 100, 1)
    earned = gains(planted, env, best_decision(best)).item()
    signal = market.extra[:, 0, 0].numpy()
    # The same bars' own optimum: their signals differ from the distribution's by chance.
    free = float(np.maximum(planted.expected_return(signal), 0).mean())
    assert earned == pytest.approx(best.gain * free / optimum(Planted(0.1, 0.0)).gain, rel=0.02)
    hasty = gains(planted, env, best_decision(optimum(Planted(0.1, 0.0)))).item()
    assert 0 < hasty < earned


def test_a_signal_of_bars_ago_is_worth_what_it_says_to_who_remembers_it():
    """The policy that holds the asset with the largest signal of two bars ago, where it is above 0, earns all there is;
    the same of the last bar earns nothing."""
    planted = Planted(ic=0.4, cost_bps=0.0, rho=0.0, delay=2, n_assets=2)
    market = planted.market(4_000, seed=3)
    env = walking(planted, market, (0, 4_000), 20, 1, "weights", lookback=3)
    features = len(env.features.names)

    def holding(bars_ago: int) -> float:
        def decide(x: torch.Tensor) -> torch.Tensor:
            row = (2 - bars_ago) * 2 * features
            signal = torch.stack([x[..., row + (a + 1) * features - 1] for a in range(2)], dim=-1)
            choices = torch.cat([signal, torch.full_like(signal[..., :1], planted.sigma * planted.ic / 2)], dim=-1)
            return torch.where(choices == choices.amax(-1, keepdim=True), 1.0, -1.0)

        return gains(planted, env, decide).item() / best_without_costs(planted, env)

    assert holding(2) == pytest.approx(1.0, abs=1e-3) and abs(holding(0)) < 0.1


def share_of_the_optimum(seed: int, action: str, iterations: int, **config) -> float:
    planted = Planted(ic=0.1, cost_bps=1.0)
    market, best = planted.market(TRAIN + TEST, seed=seed), optimum(planted)
    options = planted.env_options(action)
    env = MarketVecEnv(market, 512, segments=[(0, TRAIN)], seed=seed, **options)
    agent = AgentSHAC(PolicySpec.of(env, hidden=(32,), log_std=-1.5), SHACConfig(gamma=0.9, **config), (seed,))
    agent.policy.fit_normalizer(env)
    train(agent, env, Budget(iterations=iterations))
    window = (TRAIN, TRAIN + TEST)
    most = gains(planted, walking(planted, market, window, 50, 1), best_decision(best)).item()
    return gains(planted, walking(planted, market, window, 50, 1, action), agent.decide).item() / most


@pytest.mark.parametrize("action", ["weights", "trades"])
def test_most_of_the_optimum_is_earned_on_other_bars(action):
    """230,000 steps, at an information coefficient of 0.1 with costs of one basis point."""
    assert share_of_the_optimum(1, action, 14, learning_rate=1e-2, anneal_lr=True) >= 0.85


@pytest.mark.parametrize(("lookback", "low", "high"), [(3, 0.5, 1.0), (1, -0.2, 0.2)])
def test_a_transformer_reads_a_signal_of_two_bars_ago_where_its_window_reaches_it(lookback, low, high):
    planted = Planted(ic=0.4, cost_bps=0.0, rho=0.0, delay=2)
    market = planted.market(24_000, seed=1)
    options = {"lookback": lookback, "clock_groups": 64, **planted.env_options()}
    env = MarketVecEnv(market, 256, segments=[(0, 20_000)], seed=1, **options)
    network = {"network": "lightweight", "d_model": 16, "n_heads": 2, "num_layers": 1}
    spec = PolicySpec.of(env, hidden=(32,), log_std=-1.5, **network)
    agent = AgentSHAC(spec, SHACConfig(gamma=0.9, learning_rate=3e-3, horizon_len=16), (1,))
    agent.policy.fit_normalizer(env)
    train(agent, env, Budget(iterations=30))
    walk = walking(planted, market, (20_000, 24_000), 40, 1, "weights", lookback)
    assert low <= gains(planted, walk, agent.decide).item() / best_without_costs(planted, walk) <= high


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_most_of_the_optimum_is_earned_from_other_seeds(seed):
    assert share_of_the_optimum(seed, "weights", 20, learning_rate=1e-2, anneal_lr=True) >= 0.85
