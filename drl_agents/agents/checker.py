"""check_agent: does an agent keep the contract of `AgentBase`? For authors of plug-ins.

The built-in agents pass it too. What it finds is raised as `AgentError`, naming the rule.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from drl_agents.agents.base import AgentBase
from drl_agents.agents.registry import build_agent, find_agent
from drl_agents.networks.spec import PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market
from environments.observation import Observation, build_observation
from environments.vec_env import VecEnv

SEEDS = (3, 8)
EACH = 4  # environments of each member
# For agents that have them: what makes a few iterations learn something.
SMALL = {"horizon_len": 8, "learning_starts": 16, "buffer_size": 128, "batch_size": 8, "update_to_data": 0.25}


class AgentError(AssertionError):
    """An agent breaks a rule of the `AgentBase` contract."""


def check_agent(name: str, config: Mapping[str, Any] | None = None, iterations: int = 4) -> None:
    """Train agent `name`, as `build_agent` knows it, on a small market; check every rule that can be seen from outside.

    Shapes of rollouts, figures and decisions; figures that are finite; saved, restored into a new agent and gone on
    with, the numbers to come are the same to the last bit; a member of a population learns what it learns alone.

    Args:
        config: hyper-parameters beside `SMALL`.
        iterations: rollouts with their update, of each training.

    Raises:
        AgentError: the first rule broken.
        InputError: no such agent, or it plays neither trades (a Box) nor regimes (a Discrete).
    """
    known = [item.name for item in fields(find_agent(name)[1])]
    own = {**{key: value for key, value in SMALL.items() if key in known}, **(config or {})}
    action = _action(name, own)
    agent, env = _build(name, own, action, SEEDS)
    _check_training(agent, env, iterations)
    _check_decisions(agent, env)
    _check_restored(agent, env, _build(name, own, action, SEEDS), iterations)
    _check_alone(name, own, action, iterations)


def _market() -> Market:
    return Market.from_bars(load_bars("synthetic", options={"kind": "gbm", "n_bars": 200, "n_assets": 2}, seed=0))


def _env(action: str, seeds: Sequence[int]) -> VecEnv:
    p = len(seeds)
    return VectorizedCryptoEnvAlpaca(
        _market(), EACH * p, n_members=p, seed=list(seeds), episode_length=10, action=action, reward="log_return"
    )


def _build(name: str, config: Mapping[str, Any], action: str, seeds: Sequence[int]) -> tuple[AgentBase, VecEnv]:
    env = _env(action, seeds)
    agent = build_agent(name, PolicySpec.of(env, hidden=(16,)), config, seeds)
    agent.policy.fit_normalizer(env)
    return agent, env


def _action(name: str, config: Mapping[str, Any]) -> str:
    """The first action scheme the agent can play."""
    for action in ("trades", "regimes"):
        try:
            _build(name, config, action, SEEDS[:1])
        except InputError as error:
            refused = error
        else:
            return action
    raise refused


def _train(agent: AgentBase, env: VecEnv, iterations: int) -> dict[str, Tensor]:
    figures = {}
    for iteration in range(iterations):
        agent.progress = iteration / iterations
        figures = agent.update(agent.explore_env(env, agent.config.horizon_len))
    return figures


def _check_training(agent: AgentBase, env: VecEnv, iterations: int) -> None:
    t = agent.config.horizon_len
    rollout = agent.explore_env(env, t)
    shape = (t, env.n_envs)
    for name in ("reward", "terminated", "truncated", "log_prob"):
        _require(getattr(rollout, name).shape == shape, f"rollout.{name} is (T, N) = {shape}")
    space = env.single_action_space
    _require(rollout.action.shape == (*shape, *space.shape), f"rollout.action is (T, N, ...) of {space}")
    _require(bool(rollout.state.isfinite().all()), "what is seen is finite")
    before = [value.clone() for value in agent.policy.state_dict().values()]
    agent.update(rollout)
    for name, value in _train(agent, env, iterations).items():
        _require(value.shape == (agent.n_members,), f"figure {name} is (P,), not {tuple(value.shape)}")
        _require(bool(value.isfinite().all()), f"figure {name} is finite")
    after = agent.policy.state_dict().values()
    _require(any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), "training changes the policy")
    _require(all(bool(value.isfinite().all()) for value in after), "the policy stays finite")


def _check_decisions(agent: AgentBase, env: VecEnv) -> None:
    space, x = env.single_action_space, _observations(env)
    decided = agent.decide(x)
    _require(decided.shape == (*x.shape[:2], *space.shape), f"decide gives (P, n, ...) of {space}")
    for one in decided.flatten(0, 1).clamp(-1, 1) if space.shape else decided.flatten():
        _require(space.contains(one.numpy().astype(space.dtype)), f"decide gives members of {space}, not {one}")
    _require(torch.equal(decided, agent.decide(x)), "decide, begun anew, gives the same for the same")


def _check_restored(agent: AgentBase, env: VecEnv, fresh: tuple[AgentBase, VecEnv], iterations: int) -> None:
    buffer = io.BytesIO()
    torch.save({"agent": agent.state_dict(), "env": env.state_dict(), "seen": agent.observation_state()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other, other_env = fresh
    other.load_state_dict(saved["agent"])
    other_env.load_state_dict(saved["env"])
    other.restore_observation(saved["seen"], other_env)
    figures, again = _train(agent, env, iterations), _train(other, other_env, iterations)
    for name in figures:
        same = name in again and torch.equal(figures[name], again[name])
        _require(same, f"saved and restored, an agent goes on the same to the last bit: {name} differs")
    for name, value in agent.policy.state_dict().items():
        same = torch.equal(value, other.policy.state_dict()[name])
        _require(same, f"saved and restored, an agent goes on the same to the last bit: {name} differs")


def _check_alone(name: str, config: Mapping[str, Any], action: str, iterations: int) -> None:
    together, env = _build(name, config, action, SEEDS)
    _train(together, env, iterations)
    for member, seed in enumerate(SEEDS):
        alone, own = _build(name, config, action, (seed,))
        _train(alone, own, iterations)
        for key, value in alone.policy.state_dict().items():
            there = together.policy.state_dict()[key][member : member + 1]
            same = torch.allclose(there, value, rtol=1e-4, atol=1e-4)
            _require(same, f"a member of a population learns what it learns alone: {key} of member {member} differs")


def _observations(env: VecEnv) -> Tensor:
    """(P, n, D) dense observations, one for each environment."""
    generator = torch.Generator().manual_seed(0)
    bar = torch.randint(env.rows.shape[0], (env.n_envs,), generator=generator)
    state = torch.rand(env.n_envs, env.state_size, generator=generator)
    return build_observation(env.rows, Observation(bar, state), env.lookback).view(env.n_members, EACH, -1)


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise AgentError(rule)
