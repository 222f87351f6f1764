"""PPO solves the classic control problems, through the same door as any plug-in environment."""

from __future__ import annotations

import pytest

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import PolicySpec
from drl_agents.training.trainer import Budget, train
from environments.plugin import build_env

CART_POLE = PPOConfig(
    horizon_len=32,
    learning_rate=1e-3,
    num_minibatches=1,
    update_epochs=20,
    gamma=0.98,
    gae_lambda=0.8,
    anneal_lr=True,
)
PENDULUM = PPOConfig(
    horizon_len=256,
    learning_rate=1e-3,
    num_minibatches=8,
    update_epochs=10,
    gamma=0.9,
    reward_scale=0.1,
    anneal_lr=True,
)


def solve(name, config, timesteps, good_enough, look_every, seed, mean_return) -> float:
    """Train until a policy is clearly good on one set of starts; its mean return on 20 others."""
    env = build_env(name, None, 8, seed=100 * seed)
    looked_at = build_env(name, None, 20, seed=10_000 + 100 * seed)
    agent = AgentPPO(PolicySpec.of(env, hidden=(64, 64)), config, (seed,))
    done = {"iterations": 0, "solved": False}

    def look(iteration, of, figures) -> None:
        if iteration % look_every == 0:
            done["solved"] = mean_return(agent, looked_at) >= good_enough

    result = train(agent, env, Budget(timesteps=timesteps), stop=lambda: done["solved"], on_iteration=look)
    assert result.interrupted == done["solved"]
    return mean_return(agent, build_env(name, None, 20, seed=20_000 + 100 * seed))


def cart_pole(seed, mean_return):
    return solve("gym:CartPole-v1", CART_POLE, 100_000, 500, 10, seed, mean_return)


def pendulum(seed, mean_return):
    return solve("gym:Pendulum-v1", PENDULUM, 160_000, -190, 4, seed, mean_return)


def test_cart_pole(mean_return):
    assert cart_pole(1, mean_return) >= 475


def test_pendulum(mean_return):
    assert pendulum(1, mean_return) >= -250


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_cart_pole_from_three_seeds(seed, mean_return):
    assert cart_pole(seed, mean_return) >= 475


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_pendulum_from_three_seeds(seed, mean_return):
    assert pendulum(seed, mean_return) >= -250
