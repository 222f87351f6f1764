"""What the learning tests share: one thread, since small networks are slower with more, and a judge."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from drl_agents.agents.ppo import AgentPPO
from environments.observation import build_observation
from environments.vec_env import VecEnv


@pytest.fixture(autouse=True)
def learns_in_one_thread(one_thread):
    """Small networks are slower with more."""


def _mean_return(agent: AgentPPO, env: VecEnv) -> float:
    """Mean undiscounted return of the first episode of each of the N environments, played without noise."""
    observation = env.reset()
    total, going = torch.zeros(env.n_envs), torch.ones(env.n_envs, dtype=torch.bool)
    while going.any():
        dense = build_observation(env.rows, observation, env.lookback)
        step = env.step(agent.decide(dense.unsqueeze(0))[0])
        total += torch.where(going, step.reward, 0.0)
        going = going & ~(step.terminated | step.truncated)
        observation = step.observation
    return float(total.mean())


@pytest.fixture
def mean_return() -> Callable[[AgentPPO, VecEnv], float]:
    return _mean_return
