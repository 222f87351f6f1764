"""Exploring: what is stored, what is bootstrapped, and that a rollout goes on where the last one ended."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import PolicySpec
from environments.adapters import GymnasiumVecEnv
from environments.alpaca_env import CryptoEnvAlpaca, VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market
from environments.observation import Observation
from environments.vec_env import Step, VecEnv

LONG = 10**6


class Clock(VecEnv):
    """Environment j shows 100 * episode + 10 * j + step; ends after lengths[j] steps in way ends[j]."""

    def __init__(self, lengths: list[int], ends: list[str], n_members: int = 1) -> None:
        self.n_envs, self.n_members, self.device = len(lengths), n_members, torch.device("cpu")
        self.state_size, self.resets = 1, 0
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.single_action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.length = torch.tensor(lengths)
        self.terminal = torch.tensor([end == "terminated" for end in ends])

    def reset(self, seed=None):
        self.resets += 1
        self.clock, self.episode = torch.zeros(self.n_envs, dtype=torch.int64), torch.zeros(self.n_envs)
        return self.observe()

    def observe(self) -> Observation:
        own = 10.0 * torch.arange(self.n_envs)
        return Observation(None, (100 * self.episode + own + self.clock).unsqueeze(1))

    def step(self, action):
        self.clock += 1
        final = self.observe()
        done = self.clock >= self.length
        self.clock[done] = 0
        self.episode += done
        ends = (done & self.terminal, done & ~self.terminal)
        return Step(self.observe(), torch.ones(self.n_envs), *ends, final)


def agent_for(env: VecEnv, seeds=(0,), **config) -> AgentPPO:
    return AgentPPO(PolicySpec.of(env, hidden=(4,)), PPOConfig(**config), seeds)


def shown_as_value(agent: AgentPPO) -> None:
    """Let the value of an observation be what it shows, plus 1,000 for every member before."""
    agent.policy.value = lambda x: x[..., 0] + 1_000 * torch.arange(x.shape[0]).unsqueeze(1)
    agent._values = lambda windows, bar, state: agent.policy.value(state)


# ------------------------------------------------------------------------------------------ bootstrapping


def test_truncation_uses_the_final_observation_and_termination_zero():
    env = Clock([3, 3, LONG], ["truncated", "terminated", "truncated"])
    agent = agent_for(env, gamma=0.5, gae_lambda=0.0)
    shown_as_value(agent)
    rollout = agent.explore_env(env, 4)
    advantage, _, value = agent.advantages(rollout)
    # shown: 0 1 2 [3] 100 | 10 11 12 [13] 110 | 20 21 22 23 24
    assert rollout.by_time(value, 4).T.tolist() == [[0, 1, 2, 100], [10, 11, 12, 110], [20, 21, 22, 23]]
    step_2 = 1 + 0.5 * torch.tensor([3.0, 0.0, 23.0]) - torch.tensor([2.0, 12.0, 22.0])
    step_3 = 1 + 0.5 * torch.tensor([101.0, 111.0, 24.0]) - torch.tensor([100.0, 110.0, 23.0])
    assert_close(rollout.by_time(advantage, 4)[2:], torch.stack([step_2, step_3]))


def test_an_end_in_the_last_step_of_a_rollout():
    env = Clock([4, 4], ["truncated", "terminated"])
    agent = agent_for(env, gamma=0.5, gae_lambda=0.0)
    shown_as_value(agent)
    rollout = agent.explore_env(env, 4)
    advantage, _, _ = agent.advantages(rollout)
    assert rollout.state[4].flatten().tolist() == [100, 110]  # already the next episodes' first
    assert rollout.by_time(advantage, 4)[3].tolist() == [1 + 0.5 * 4 - 3, 1 - 13]


def test_an_episode_flagged_both_ways_is_terminated():
    env = Clock([LONG], ["truncated"])
    agent = agent_for(env, gamma=0.5, gae_lambda=0.0)
    shown_as_value(agent)
    rollout = agent.explore_env(env, 2)
    rollout.terminated[0], rollout.truncated[0] = True, True
    assert agent.advantages(rollout)[0].tolist() == [[1 - 0, 1 + 0.5 * 2 - 1]]


def test_final_values_of_members_are_their_own_networks():
    env = Clock([2, 3, 5, 2], ["truncated"] * 4, n_members=2)
    agent = agent_for(env, seeds=(1, 2))
    rollout = agent.explore_env(env, 6)
    sparse = agent._final_values(rollout)
    every = rollout.by_time(agent._values(None, None, rollout.by_member(rollout.final_state)), 6)
    assert int(rollout.truncated.sum()) == 3 + 2 + 1 + 3
    assert_close(sparse[rollout.truncated], every[rollout.truncated])
    assert not torch.equal(every[:, :2] - every[:, 2:], torch.zeros(6, 2))


def test_gamma_lambda_and_reward_scale_of_each_member_reach_its_environments():
    env = Clock([LONG] * 4, ["truncated"] * 4, n_members=2)
    agent = agent_for(env, seeds=(1, 2), gamma=(0.5, 0.0), gae_lambda=(0.0, 1.0), reward_scale=(1.0, 7.0))
    agent._values = lambda windows, bar, state: torch.full(state.shape[:2], 2.0)
    advantage, returns, _ = agent.advantages(agent.explore_env(env, 3))
    assert advantage.tolist() == [[1 + 1 - 2.0] * 6, [7 - 2.0] * 6]
    assert returns.tolist() == [[2.0] * 6, [7.0] * 6]


# ----------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize("members", [1, 2, 3])
def test_by_time_is_the_inverse_of_by_member(members):
    env = Clock([LONG] * 6, ["truncated"] * 6, n_members=members)
    rollout = agent_for(env, seeds=range(members)).explore_env(env, 4)
    x = torch.arange(24).view(4, 6)
    rows = rollout.by_member(x)
    assert torch.equal(rollout.by_time(rows, 4), x)
    each = 6 // members
    for p, row in enumerate(rows):  # a member's own columns and nothing else
        assert torch.equal(row, x[:, p * each : (p + 1) * each].flatten())
    wide = torch.arange(72).view(4, 6, 3)
    assert torch.equal(rollout.by_member(wide)[..., 0], rollout.by_member(wide[..., 0]))


def test_stored_log_probabilities_are_those_of_the_policy_that_acted():
    market = small_market()
    env = VectorizedCryptoEnvAlpaca(market, 4, n_members=2, lookback=3, episode_length=20, seed=[1, 2])
    agent = agent_for(env, seeds=(1, 2))
    agent.policy.row_normalizer.set(*env.normalizer_stats())
    rollout = agent.explore_env(env, 30)
    x = rollout.dense(rollout.by_member(rollout.bar[:-1]), rollout.by_member(rollout.state[:-1]))
    log_prob, _, _ = agent.policy.evaluate(x, rollout.by_member(rollout.action))
    assert_close(log_prob, rollout.by_member(rollout.log_prob), rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------------- going on


def test_exploring_continues_where_it_stopped():
    env = Clock([LONG], ["truncated"])
    agent = agent_for(env)
    shown = [agent.explore_env(env, steps).state.flatten().tolist() for steps in (3, 3, 5)]
    assert shown == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9, 10, 11]]
    assert env.resets == 1


def test_exploring_goes_on_in_a_market():
    env = VectorizedCryptoEnvAlpaca(small_market(), 4, episode_length=25, seed=3)
    agent = agent_for(env)
    last = None
    for _ in range(5):
        rollout = agent.explore_env(env, 8)
        if last is not None:
            assert torch.equal(rollout.bar[0], last[0]) and torch.equal(rollout.state[0], last[1])
        going = ~(rollout.terminated | rollout.truncated)
        assert torch.equal((rollout.bar[1:] - rollout.bar[:-1])[going], torch.ones_like(rollout.bar[1:])[going])
        assert torch.equal(rollout.final_bar, rollout.bar[:-1] + 1)
        assert torch.equal(rollout.final_state[going], rollout.state[1:][going])
        last = rollout.bar[-1].clone(), rollout.state[-1].clone()


def test_another_environment_begins_with_its_own_reset():
    """Also where it looks the same from outside: as many environments, the same (or no) market rows."""
    first, second = Clock([LONG], ["truncated"]), Clock([LONG], ["truncated"])
    agent = agent_for(first)
    agent.explore_env(first, 3)
    assert agent.explore_env(second, 3).state.flatten().tolist() == [0, 1, 2, 3]
    assert second.resets == 1


def test_members_of_environment_and_agent_must_agree():
    env = Clock([LONG] * 4, ["truncated"] * 4, n_members=2)
    agent = agent_for(env, seeds=(1,))
    with pytest.raises(InputError, match="serves 2 members, the agent has 1"):
        agent.explore_env(env, 2)


def test_too_few_samples_for_the_minibatches():
    env = Clock([LONG], ["truncated"])
    agent = agent_for(env, num_minibatches=4, norm_adv=True)
    with pytest.raises(InputError, match="num_minibatches=4"):  # one sample each has no standard deviation
        agent.update(agent.explore_env(env, 4))


# --------------------------------------------------------------------------------------- one environment

FIELDS = ("state", "final_state", "action", "log_prob", "reward", "terminated", "truncated")


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_one_environment_equals_vectorised_with_one(name):
    wrapped = GymnasiumVecEnv(lambda: gymnasium.make(name), 1, seed=5)
    single = gymnasium.make(name)
    one, many = (agent_for(wrapped, seeds=(5,), num_minibatches=2) for _ in range(2))
    for _ in range(3):
        a, b = one.explore_one_env(single, 70), many.explore_vec_env(wrapped, 70)
        for field in FIELDS:
            assert torch.equal(getattr(a, field), getattr(b, field)), field
        one.update(a), many.update(b)
    assert torch.equal(one.parameters.values, many.parameters.values)


def test_a_single_market_environment_equals_vectorised_with_one():
    market, seed = small_market(), 11
    options = {"episode_length": 15, "lookback": 2}
    vectorised = VectorizedCryptoEnvAlpaca(market, 1, seed=seed, **options)
    single = CryptoEnvAlpaca(market, **options)
    shown, _ = single.reset(seed=seed)
    observation = vectorised.reset(seed)
    draws = torch.Generator().manual_seed(0)
    for _ in range(60):
        market_part = vectorised.rows[torch.tensor([observation.bar - 1, observation.bar])].flatten()
        expected = torch.cat([market_part.nan_to_num(), observation.state[0]])
        assert np.array_equal(shown, expected.numpy())
        action = torch.rand(1, 2, generator=draws) * 2 - 1
        step = vectorised.step(action)
        shown, reward, terminated, truncated, _ = single.step(action[0].numpy())
        assert (reward, terminated, truncated) == (step.reward[0], step.terminated[0], step.truncated[0])
        observation = step.observation
        if terminated or truncated:
            shown, _ = single.reset()


# -------------------------------------------------------------------------------------------- learning


def test_the_value_of_an_endless_reward_of_one():
    """V = 1 / (1 - gamma) = 10; with truncations every 20 steps that only the bootstrap can bridge."""
    torch.set_num_threads(1)

    class Endless(Clock):
        def observe(self):
            return Observation(None, torch.ones(self.n_envs, 1))

    env = Endless([20] * 8, ["truncated"] * 8)
    config = {
        "gamma": 0.9,
        "learning_rate": 1e-2,
        "num_minibatches": 2,
        "update_epochs": 8,
        "max_grad_norm": 10.0,
    }
    agent = agent_for(env, anneal_lr=True, **config)
    for i in range(40):
        agent.progress = i / 40
        agent.update(agent.explore_env(env, 32))
    assert agent.policy.value(torch.ones(1, 1, 1)).item() == pytest.approx(10.0, rel=0.03)


def small_market() -> Market:
    options = {"kind": "momentum", "n_bars": 400, "n_assets": 2}
    return Market.from_bars(load_bars("synthetic", options=options, seed=1))
