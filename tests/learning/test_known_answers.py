"""Problems so small that the answer is known: what PPO must find, and the values it must learn on the way."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import PolicySpec
from drl_agents.training.trainer import Budget, train
from environments.checker import check_env
from environments.observation import Observation
from environments.plugin import build_env
from environments.vec_env import Step, VecEnv

DISCRETE = gymnasium.spaces.Discrete(2)
BOX = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)


class Puzzle(VecEnv):
    """N environments with one number to see; a subclass says what an action pays and what is seen next.

    Episodes are cut after `length` steps, or terminated there.
    """

    length, terminal, start_state = 10, False, 0.0
    single_action_space: gymnasium.Space = DISCRETE

    def __init__(self, n_envs: int, seed: int = 0) -> None:
        self.n_envs, self.device, self.state_size = n_envs, torch.device("cpu"), 1
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.generator = torch.Generator().manual_seed(seed)

    def first(self) -> torch.Tensor:
        return torch.full((self.n_envs,), self.start_state)

    def pay(self, state, action) -> tuple[torch.Tensor, torch.Tensor]:
        """(reward, next state), each (N,)."""
        raise NotImplementedError

    def coin(self) -> torch.Tensor:
        return torch.rand(self.n_envs, generator=self.generator)

    def reset(self, seed=None):
        if seed is not None:
            self.generator.manual_seed(seed)
        self.state, self.clock = self.first(), 0
        return self.shown(self.state)

    def shown(self, state) -> Observation:
        return Observation(None, state.unsqueeze(1).clone())

    def step(self, action):
        reward, successor = self.pay(self.state, action if action.dim() == 1 else action[:, 0])
        self.clock = (self.clock + 1) % self.length
        done = torch.full((self.n_envs,), self.clock == 0)
        self.state = torch.where(done, self.first(), successor)
        ends = (done, ~done & False) if self.terminal else (~done & False, done)
        return Step(self.shown(self.state), reward.float(), *ends, self.shown(successor))


class Bandit(Puzzle):
    """Arm 0 pays 1 with probability 0.3, arm 1 with probability 0.7; one pull is an episode."""

    length, terminal = 1, True

    def pay(self, state, action):
        chance = torch.where(action == 1, 0.7, 0.3)
        return (self.coin() < chance).float(), state


class Chain(Puzzle):
    """State 0 pays 1 and leads to state 1, state 1 pays 0 and leads to state 0, whatever is done."""

    def pay(self, state, action):
        return 1.0 - state, 1.0 - state


class Delay(Puzzle):
    """State 0: action 0 pays 0.5 and stays, action 1 pays -1 and leads to 1. State 1: pays 3, leads to 0."""

    length = 20

    def pay(self, state, action):
        go = (action == 1) & (state == 0)
        reward = torch.where(state == 1, 3.0, torch.where(go, -1.0, 0.5))
        return reward, go.float()


class Sign(Puzzle):
    """-1 or 1 is seen at random, and half of it is the right action: the reward is -(action - seen / 2)^2."""

    single_action_space = BOX

    def first(self):
        return torch.where(self.coin() < 0.5, -1.0, 1.0)

    def pay(self, state, action):
        return -(action.clamp(-1, 1) - state / 2).square(), self.first()


def learn(puzzle: type[Puzzle], iterations: int, seed: int = 0, **config) -> tuple[AgentPPO, VecEnv]:
    env = build_env(puzzle, None, 16, seed=seed)
    settings = {"horizon_len": 20, "learning_rate": 1e-2, "update_epochs": 4, "anneal_lr": True, "gamma": 0.9}
    agent = AgentPPO(PolicySpec.of(env, hidden=(16,)), PPOConfig(**{**settings, **config}), (seed,))
    train(agent, env, Budget(iterations=iterations))
    return agent, env


def values(agent: AgentPPO, *states: float) -> list[float]:
    with torch.no_grad():
        return agent.policy.value(torch.tensor(states).view(1, -1, 1))[0].tolist()


@pytest.mark.parametrize("puzzle", [Bandit, Chain, Delay, Sign])
def test_the_puzzles_are_environments(puzzle):
    check_env(build_env(puzzle, None, 3))


def test_two_armed_bandit():
    """The better arm is played; an episode is worth what it pays, nothing is bootstrapped."""
    agent, _ = learn(Bandit, 60)
    assert agent.decide(torch.zeros(1, 1, 1)).item() == 1
    logits = agent.policy.actor(torch.zeros(1, 1, 1))
    assert torch.softmax(logits, -1)[0, 0, 1] > 0.9
    assert values(agent, 0.0) == pytest.approx([0.7], abs=0.07)


def test_values_of_a_two_state_chain():
    """V0 = 1 + gamma V1 and V1 = gamma V0: V0 = 1 / (1 - gamma^2), V1 = gamma / (1 - gamma^2)."""
    agent, _ = learn(Chain, 60, gamma=0.8, max_grad_norm=10.0, update_epochs=8)
    assert values(agent, 0.0, 1.0) == pytest.approx([1 / 0.36, 0.8 / 0.36], rel=0.02)


@pytest.mark.parametrize(("gamma", "goes"), [(0.9, 1), (0.2, 0)])
def test_patience_depends_on_gamma(gamma, goes):
    """Worth of going: (-1 + 3 gamma) / (1 - gamma^2); of staying: 0.5 / (1 - gamma).

    8.9 against 5 at gamma = 0.9, -0.4 against 0.6 at 0.2.
    """
    agent, _ = learn(Delay, 60, gamma=gamma, ent_coef=0.01)
    assert agent.decide(torch.zeros(1, 1, 1)).item() == goes
    worth = (-1 + 3 * gamma) / (1 - gamma**2) if goes else 0.5 / (1 - gamma)
    assert values(agent, 0.0) == pytest.approx([worth], rel=0.15)


def test_the_action_follows_the_observation():
    agent, _ = learn(Sign, 80, gamma=0.0)
    decided = agent.decide(torch.tensor([[[-1.0], [1.0]]])).flatten().tolist()
    assert decided == pytest.approx([-0.5, 0.5], abs=0.1)
