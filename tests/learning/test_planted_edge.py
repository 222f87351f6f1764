"""A planted edge is found and earned on bars never trained on; where there is none the gate lets nothing through."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.deployment.gate import GateLimits
from drl_agents.deployment.job_plan import JobSettings
from drl_agents.deployment.main_job import run_main_job
from drl_agents.deployment.registry import Registry
from drl_agents.evaluation.backtest import backtest
from drl_agents.networks.policy import PolicySpec
from drl_agents.training.trainer import Budget, train
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.market import Market

SPLIT, END = 9_000, 12_000
FREE = {"commission_bps": 0.0, "spread_bps": 0.0, "slippage_bps": 0.0, "impact_coef": 0.0}
SIGMA, IC = 0.01, 0.2


def signal_market(seed: int) -> Market:
    options = {"kind": "signal", "n_bars": END, "n_assets": 1, "sigma": SIGMA, "ic": IC, "rho": 0.9}
    return Market.from_bars(load_bars("synthetic", options=options, seed=seed))


def earned(seed: int) -> tuple[float, float]:
    """Log growth on the bars after the split, both through the back-test: the trained policy's, the best one's."""
    market = signal_market(seed)
    own = {"max_trade": 1.0, "reward": "log_return", **FREE}
    env = VectorizedCryptoEnvAlpaca(market, 64, segments=[(0, SPLIT)], seed=seed, **own)
    config = PPOConfig(horizon_len=64, learning_rate=1e-3, gamma=0.9)
    agent = AgentPPO(PolicySpec.of(env, hidden=(64, 64)), config, (seed,))
    agent.policy.fit_normalizer(env)
    train(agent, env, Budget(iterations=30))

    walk = VectorizedCryptoEnvAlpaca(market, 1, segments=[(SPLIT, END)], random_start=False, episode_length=None, **own)
    column = walk.features.names.index("signal")

    def best(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[..., column : column + 1] > 0, 1.0, -1.0)

    growth = [float(np.log(backtest(walk, decide)[0].equity[-1] / 100_000.0)) for decide in (agent.decide, best)]
    # The best policy earns what the maker of the bars says it does, within three standard errors of its mean.
    expected = market.planted["optimal_log_return_per_bar"] * (END - SPLIT)
    assert abs(growth[1] - expected) < 3 * SIGMA * np.sqrt((END - SPLIT) / 2)
    return growth[0], growth[1]


def test_ppo_earns_a_planted_edge():
    learned, best = earned(1)
    assert learned >= 0.7 * best > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_ppo_earns_a_planted_edge_from_other_seeds(seed):
    learned, best = earned(seed)
    assert learned >= 0.7 * best > 0


@pytest.mark.parametrize("seed", [1, 2])
def test_noise_is_refused(seed, tmp_path):
    """The whole main job on a market without an edge: nothing is deployed, and the reasons are on record."""
    bars = load_bars("synthetic", options={"kind": "gbm", "n_bars": 700, "drift": 0.0}, seed=seed)
    settings = JobSettings(
        "noise", n_trials=3, n_envs=4, timesteps=1_000, n_splits=3, test_groups=1, n_seeds=2, seed=seed,
        logs=tmp_path / "logs", limits=GateLimits(), env_options={"episode_length": 100},
    )  # fmt: skip
    result = run_main_job(Market.from_bars(bars), settings)
    assert result.complete and not result.verdict.passed and result.deployed is None
    assert "deflated Sharpe ratio" in {c.name for c in result.verdict.checks if not c.passed}
    assert result.paper_difference <= 1e-6
    assert not list((tmp_path / "logs" / "deployment").glob("champions/*"))
    audit = (tmp_path / "logs" / "deployment" / "audit.jsonl").read_text().splitlines()
    assert len(audit) == 1 and '"refused"' in audit[0] and "deflated Sharpe ratio" in audit[0]
    with pytest.raises(ValueError, match="no champion yet"):
        Registry(tmp_path / "logs").newest_slot()
