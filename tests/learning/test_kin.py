"""PPO's kin on problems so small that the answer is known; slow: on their classics."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from drl_agents.agents.registry import build_agent
from drl_agents.networks.spec import PolicySpec
from drl_agents.training.trainer import Budget, train
from environments.observation import Observation
from environments.vec_env import Step, VecEnv

SEEDS = (1, 2)


class Puzzle(VecEnv):
    """16 environments of each member, with one number to see; episodes end after `length` steps."""

    n_members, n_envs, state_size, device = len(SEEDS), 16 * len(SEEDS), 1, torch.device("cpu")
    single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    length, terminal = 20, False

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def coin(self) -> torch.Tensor:
        return (torch.rand(self.n_envs, generator=self.generator) < 0.5).float()

    def first(self) -> torch.Tensor:
        return self.coin()

    def reset(self, seed=None):
        self.state, self.clock = self.first(), 0
        return self.shown(self.state)

    def shown(self, state) -> Observation:
        return Observation(None, state.unsqueeze(1).clone())

    def step(self, action):
        reward, successor = self.pay(action.view(self.n_envs))
        self.clock = (self.clock + 1) % self.length
        done = torch.full((self.n_envs,), self.clock == 0)
        self.state = torch.where(done, self.first(), successor)
        ends = (done, ~done & False) if self.terminal else (~done & False, done)
        return Step(self.shown(self.state), reward, *ends, self.shown(successor))


class Delay(Puzzle):
    """State 0: action 0 pays 0.5 and stays, action 1 pays -1 and leads to 1. State 1 pays 3 and leads to 0."""

    single_action_space = gymnasium.spaces.Discrete(2)

    def pay(self, action):
        go = (action == 1) & (self.state == 0)
        return torch.where(self.state == 1, 3.0, torch.where(go, -1.0, 0.5)), go.float()


class Halves(Puzzle):
    """0 or 1 is seen at random, and that less a half is the right action: the reward is -(action - seen + 1/2)^2."""

    single_action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def pay(self, action):
        return -(action.clamp(-1, 1) - self.state + 0.5).square(), self.coin()


class OneStep(Halves):
    """The same in episodes of one step, after which nothing comes; every step pays 2 more."""

    length, terminal = 1, True

    def pay(self, action):
        reward, successor = super().pay(action)
        return reward + 2.0, successor


def learn(name: str, env: Puzzle, iterations: int, **config):
    agent = build_agent(name, PolicySpec.of(env, hidden=(16,)), config, SEEDS)
    train(agent, env, Budget(iterations=iterations))
    return agent


OFF_POLICY = {"horizon_len": 4, "learning_starts": 1_024, "batch_size": 64, "buffer_size": 10_000, "tau": 0.05}
BOX = {
    "sac": {"policy_lr": 1e-2, "q_lr": 1e-2},
    "td3": {"learning_rate": 1e-2},
    "ddpg": {"learning_rate": 1e-2, "exploration_noise": 0.4},
}


@pytest.mark.parametrize("name", BOX)
def test_the_action_follows_the_observation(name):
    agent = learn(name, Halves(), 110, **OFF_POLICY, **BOX[name], update_to_data=0.125, gamma=0.5)
    decided = agent.decide(torch.tensor([[[0.0], [1.0]]] * 2)).flatten().tolist()
    assert decided == pytest.approx([-0.5, 0.5] * 2, abs=0.25)


@pytest.mark.parametrize("prioritized", [False, True])
def test_an_end_is_worth_what_it_pays(prioritized):
    """Where every step terminates, Q(s, a) is the reward, whatever gamma is: 2 for the right action."""
    own = {"update_to_data": 0.125, "gamma": 0.9, "prioritized_replay": prioritized, "n_step": 3}
    agent = learn("ddpg", OneStep(), 70, **OFF_POLICY, **BOX["ddpg"], **own)
    state = torch.tensor([[[0.0], [1.0]]] * 2)
    with torch.no_grad():
        value = agent.critic(agent.dense(None, state), agent.decide(state)).flatten().tolist()
    assert value == pytest.approx([2.0] * 4, abs=0.15)


@pytest.mark.parametrize(("gamma", "goes"), [(0.9, 1), (0.2, 0)])
def test_patience_depends_on_gamma(gamma, goes):
    """Worth of going: (-1 + 3 gamma) / (1 - gamma^2), 8.9 against 5 of staying; 0.5 / (1 - gamma), 0.6 against -0.4.

    The episodes are cut, not ended: were their last steps worth only what they pay, Q would be lower.
    """
    own = {"learning_rate": 1e-2, "target_network_frequency": 10, "update_to_data": 0.125}
    agent = learn("dqn", Delay(), 130, **{**OFF_POLICY, "tau": 1.0}, **own, gamma=gamma)
    assert agent.decide(torch.zeros(2, 1, 1)).flatten().tolist() == [goes] * 2
    worth = (-1 + 3 * gamma) / (1 - gamma**2) if goes else 0.5 / (1 - gamma)
    with torch.no_grad():
        values = agent.network(None, torch.zeros(2, 1, 1)).amax(-1).flatten().tolist()
    assert values == pytest.approx([worth] * 2, rel=0.1)


def test_a2c_is_patient_too():
    agent = learn("a2c", Delay(), 300, gamma=0.9, learning_rate=3e-3)
    assert agent.decide(torch.zeros(2, 1, 1)).flatten().tolist() == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a2c", "dqn", "sac", "td3", "ddpg"])
def test_it_solves_its_classic_from_three_seeds(name):
    """CartPole-v1 >= 475 or Pendulum-v1 >= -200 on starts not looked at before, within the steps of `CLASSICS`."""
    kin = pytest.importorskip("tests.benchmarks.kin", reason="stable-baselines3 is not installed")
    assert None not in kin.ours(name)["solved_at_steps"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a2c", "dqn", "sac", "td3", "ddpg"])
def test_it_trades_the_planted_edge(name):
    """At least 0.7 of what the known policy earns on bars never trained on, each of three seeds."""
    kin = pytest.importorskip("tests.benchmarks.kin", reason="stable-baselines3 is not installed")
    assert min(kin.edge(name)["share_of_the_known_policy"]) >= 0.7
