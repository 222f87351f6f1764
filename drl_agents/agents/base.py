"""AgentBase: explores an environment, learns from what it saw.

A subclass writes its networks, `act`, `update` and its losses. Agents touch no files and no command lines.
An agent is a population of P members trained side by side; mostly P is 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from drl_agents.networks.distributions import ActionDistribution
from drl_agents.networks.population import member_generators
from drl_agents.rollout.buffer import Rollout
from environments.adapters import GymnasiumVecEnv
from environments.errors import InputError
from environments.observation import Observation, build_observation
from environments.vec_env import VecEnv


class AgentBase(ABC):
    """What every agent has.

    Attributes:
        policy: the network, with its normalisers.
        seeds: one per member.
        device: where the network lives.
    """

    policy: nn.Module
    distribution: ActionDistribution

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.seeds, self.device = tuple(seeds), device
        self.noise_generators = list(member_generators(seeds, stream=1))
        self._rollout: Rollout | None = None
        self._observation: Observation | None = None
        self._explored: VecEnv | None = None  # the environment that `_observation` is of
        self._single: tuple[gymnasium.Env, VecEnv] | None = None

    @property
    def n_members(self) -> int:
        return len(self.seeds)

    # ----------------------------------------------------------------------------------------- exploring

    def explore_env(self, env: VecEnv | gymnasium.Env, horizon_len: int) -> Rollout:
        """Run the policy for `horizon_len` steps, going on where the last call stopped."""
        if isinstance(env, VecEnv):
            return self.explore_vec_env(env, horizon_len)
        return self.explore_one_env(env, horizon_len)

    def explore_one_env(self, env: gymnasium.Env, horizon_len: int) -> Rollout:
        """`explore_vec_env` over the view of a single Gymnasium environment as N = 1."""
        if self._single is None or self._single[0] is not env:
            self._single = (env, GymnasiumVecEnv(lambda: env, 1, seed=self.seeds[0]))
        return self.explore_vec_env(self._single[1], horizon_len)

    @torch.no_grad()
    def explore_vec_env(self, env: VecEnv, horizon_len: int) -> Rollout:
        """Fill the rollout buffer; the same buffer every time.

        Raises:
            InputError: the environment has other members than the agent.
        """
        if env.n_members != self.n_members:
            raise InputError(f"the environment serves {env.n_members} members, the agent has {self.n_members}")
        rollout = self._buffer(env, horizon_len)
        p, each = self.n_members, env.n_envs // self.n_members
        noise = torch.stack([self.distribution.noise((horizon_len, each), g) for g in self.noise_generators], dim=1)
        noise = noise.to(self.device)
        if self._explored is not env or self._observation is None:
            self._observation, self._explored = env.reset(), env
        observation = self._observation
        for t in range(horizon_len):
            rollout.put_observation(t, observation)
            dense = build_observation(env.rows, observation, env.lookback).view(p, each, -1)
            action, log_prob = self.act(dense, noise[t])
            action = action.flatten(0, 1)
            step = env.step(action)
            rollout.put_step(t, action, log_prob.flatten(), step)
            observation = step.observation
        rollout.put_observation(horizon_len, observation)
        self._observation = observation
        return rollout

    def _buffer(self, env: VecEnv, horizon_len: int) -> Rollout:
        known = self._rollout
        if known is None or self._explored is not env or known.horizon_len != horizon_len:
            space = env.single_action_space
            dtype = torch.int64 if isinstance(space, gymnasium.spaces.Discrete) else torch.float32
            self._rollout = Rollout(env, horizon_len, space.shape, dtype)
        return self._rollout

    # ------------------------------------------------------------------------------------------ learning

    @abstractmethod
    def act(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Explore: dense observations (P, n, D) -> actions (P, n, ...), log probabilities (P, n)."""

    @abstractmethod
    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """Learn from a rollout. Returns figures to log, each (P,)."""

    @torch.no_grad()
    def decide(self, x: Tensor) -> Tensor:
        """The action to be judged by: dense observations (P, n, D) -> actions (P, n, ...)."""
        return self.policy.mode(x)

    # --------------------------------------------------------------------------------------- persistence

    def state_dict(self) -> dict[str, Any]:
        """Everything the next update depends on, as tensors, numbers, and dictionaries of them."""
        generators = torch.stack([g.get_state() for g in self.noise_generators])
        # Copies: what was saved must not go on changing with the next update.
        policy = {name: value.clone() for name, value in self.policy.state_dict().items()}
        return {"policy": policy, "noise_generators": generators}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        for generator, own in zip(self.noise_generators, state["noise_generators"], strict=True):
            generator.set_state(own.clone())  # torch 2.13 crashes on a view

    def observation_state(self) -> dict[str, Tensor] | None:
        """The observation the next rollout begins with."""
        if self._observation is None:
            return None
        bar = {} if self._observation.bar is None else {"bar": self._observation.bar.clone()}
        return {"state": self._observation.state.clone(), **bar}

    def restore_observation(self, state: dict[str, Tensor], env: VecEnv) -> None:
        """Let the next rollout, if it is of `env`, begin with what `observation_state` gave."""
        self._observation, self._explored = Observation(state.get("bar"), state["state"]), env
        self._rollout = None
