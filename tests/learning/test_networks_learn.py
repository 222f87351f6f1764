"""Every network earns a planted edge, and the one that remembers solves what cannot be solved without."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.evaluation.backtest import backtest
from drl_agents.networks.spec import PolicySpec
from drl_agents.training.trainer import Budget, train
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.market import Market
from environments.observation import Observation
from environments.vec_env import Step, VecEnv

SPLIT, END, LOOKBACK = 3_000, 4_000, 4
TRADING = {
    "max_trade": 1.0, "reward": "log_return", "lookback": LOOKBACK,
    "commission_bps": 0.0, "spread_bps": 0.0, "slippage_bps": 0.0, "impact_coef": 0.0,
}  # fmt: skip
KINDS = {
    "gru": {"network": "gru", "hidden_dim": 32, "n_gru_layers": 1, "hidden": (32,)},
    "lightweight": {"network": "lightweight", "d_model": 16, "n_heads": 2, "hidden": (32,)},
    "per asset": {"per_asset": True, "hidden": (32, 32)},
}


def signal_market(n_assets: int, seed: int) -> Market:
    options = {"kind": "signal", "n_bars": END, "n_assets": n_assets, "sigma": 0.01, "ic": 0.3, "rho": 0.9}
    return Market.from_bars(load_bars("synthetic", options=options, seed=seed))


def earned(agent: AgentPPO, market: Market) -> float:
    """Log growth on the bars after the split as a share of what the best policy has, which sees the signal."""
    walk = VectorizedCryptoEnvAlpaca(
        market, 1, segments=[(SPLIT, END)], random_start=False, episode_length=None, **TRADING
    )
    features, row = len(walk.features.names), walk.rows.shape[1]
    first = (LOOKBACK - 1) * row + walk.features.names.index("signal")
    signals = slice(first, LOOKBACK * row, features)

    def best(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[..., signals] > 0, 1.0, -1.0)

    learned, most = (float(np.log(backtest(walk, d)[0].equity[-1] / 100_000.0)) for d in (agent.decide, best))
    assert most > 0.5
    return learned / most


def trained(market: Market, kind: str, iterations: int, **config) -> tuple[AgentPPO, dict[str, list[float]]]:
    env = VectorizedCryptoEnvAlpaca(market, 64, segments=[(0, SPLIT)], seed=1, episode_length=200, **TRADING)
    settings = {"horizon_len": 16, "gamma": 0.9, "learning_rate": 3e-3, "update_epochs": 3, **config}
    agent = AgentPPO(PolicySpec.of(env, **KINDS[kind]), PPOConfig(**settings), (1,))
    agent.policy.fit_normalizer(env)
    return agent, train(agent, env, Budget(iterations=iterations)).figures


@pytest.mark.parametrize("kind", ["gru", "lightweight"])
def test_each_network_earns_a_planted_edge(kind):
    agent, _ = trained(signal_market(1, 1), kind, 16)
    assert earned(agent, signal_market(1, 1)) >= 0.5


def test_shared_by_two_assets_the_edge_is_earned_on_five_others():
    agent, _ = trained(signal_market(2, 1), "per asset", 12)
    assert earned(agent, signal_market(5, 2)) >= 0.5


class Recall(VecEnv):
    """The first of four observations is -1 or 1, the others are 0; the last action pays 1 where it says which it was.

    Without a memory half of that is the most there is to be had.
    """

    length = 4
    single_action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, n_envs: int, seed: int = 0) -> None:
        self.n_envs, self.device, self.state_size = n_envs, torch.device("cpu"), 2
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.generator = torch.Generator().manual_seed(seed)

    def reset(self, seed=None):
        self.clock = 0
        self.sign = torch.where(torch.rand(self.n_envs, generator=self.generator) < 0.5, -1.0, 1.0)
        return self.shown()

    def shown(self) -> Observation:
        seen = self.sign if self.clock == 0 else torch.zeros(self.n_envs)
        return Observation(None, torch.stack([seen, torch.full_like(seen, self.clock / self.length)], dim=1))

    def step(self, action):
        self.clock += 1
        done = torch.full((self.n_envs,), self.clock == self.length)
        reward = torch.where(done & (action == (self.sign > 0)), 1.0, 0.0)
        last = self.shown()
        return Step(self.reset() if bool(done[0]) else last, reward, done, ~done & False, last)


@pytest.mark.parametrize(("network", "low", "high"), [({"network": "gru"}, 0.95, 1.0), ({}, 0.4, 0.6)])
def test_what_must_be_remembered_is_only_by_the_network_that_can(network, low, high):
    env = Recall(64)
    if network:
        network = {**network, "hidden_dim": 16, "n_gru_layers": 1}
    config = PPOConfig(horizon_len=16, learning_rate=1e-2, num_minibatches=2, gamma=1.0, ent_coef=1e-3)
    agent = AgentPPO(PolicySpec.of(env, hidden=(16,), **network), config, (0,))
    train(agent, env, Budget(iterations=25))
    player, observation, right = agent.decide, env.reset(), 0.0
    for _ in range(4):
        step = env.step(player(observation.state.unsqueeze(0))[0])
        observation, right = step.observation, right + step.reward.mean().item()
    assert low <= right <= high


def test_more_epochs_of_the_critic_explain_more_of_the_returns():
    """On the planted market, before an update and after it."""
    market, explained = signal_market(2, 1), []
    for critic_epochs in (1, 4):
        config = {"critic_epochs": critic_epochs, "critic_learning_rate": 9e-4, "learning_rate": 3e-4}
        _, figures = trained(market, "per asset", 6, **config)
        explained.append([figures[name][0] for name in ("explained_variance", "explained_variance_after")])
    assert all(after > before for before, after in explained) and explained[1][1] > explained[0][1] + 0.02
