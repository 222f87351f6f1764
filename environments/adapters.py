"""Adapters: Gymnasium environments as a VecEnv.

A single environment is run N times in a Python loop: correct for anything, fast for nothing. What should
be fast is written as a `VecEnv`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from environments.errors import InputError
from environments.observation import Observation
from environments.vec_env import Step, VecEnv


class GymnasiumVecEnv(VecEnv):
    """N Gymnasium environments stepped one after another, with same-step resets.

    Box actions are given in [-1, 1] and stretched linearly to the environment's own bounds; unbounded ones are refused.

    Args:
        make: makes one environment; called N times.
        n_envs: N >= 1.
        seed: environment i is first reset with seed + i.
    """

    def __init__(self, make: Callable[[], gymnasium.Env], n_envs: int, seed: int = 0) -> None:
        if n_envs < 1:
            raise InputError(f"n_envs={n_envs}: at least 1 is needed")
        self.envs = [make() for _ in range(n_envs)]
        self.n_envs, self.device, self.seed = n_envs, torch.device("cpu"), seed
        first = self.envs[0]
        name = getattr(first.spec, "id", type(first).__name__)
        if not isinstance(first.observation_space, gymnasium.spaces.Box):
            raise InputError(f"{name}: observations must be a Box, not {first.observation_space}")
        self.state_size = int(np.prod(first.observation_space.shape))
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self.state_size,), np.float32)
        self._own_space = space = first.action_space
        if isinstance(space, gymnasium.spaces.Box):
            if not np.isfinite([space.low, space.high]).all():
                raise InputError(f"{name}: Box actions need finite bounds, not {space}")
            self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, space.shape, np.float32)
        elif isinstance(space, gymnasium.spaces.Discrete) and space.start == 0:
            self.single_action_space = space
        else:
            raise InputError(f"{name}: actions must be a Box or a Discrete from 0, not {space}")
        self._seeded = False
        self._state = np.zeros((n_envs, self.state_size), dtype=np.float32)
        self._final = np.zeros_like(self._state)

    def reset(self, seed: int | None = None) -> Observation:
        if seed is None and not self._seeded:
            seed = self.seed
        self._seeded = True
        for i, env in enumerate(self.envs):
            own = None if seed is None else seed + i
            self._state[i] = np.asarray(env.reset(seed=own)[0]).ravel()
        return Observation(None, torch.from_numpy(self._state))

    def _own_action(self, action: np.ndarray) -> Any:
        if isinstance(self._own_space, gymnasium.spaces.Discrete):
            return int(action)
        low, high = self._own_space.low, self._own_space.high
        return low + (np.clip(action, -1, 1) + 1) * 0.5 * (high - low)

    def step(self, action: Tensor) -> Step:
        reward = np.empty(self.n_envs, dtype=np.float32)
        terminated = np.zeros(self.n_envs, dtype=bool)
        truncated = np.zeros(self.n_envs, dtype=bool)
        for i, (env, own) in enumerate(zip(self.envs, action.numpy(), strict=True)):
            observation, reward[i], terminated[i], truncated[i], _ = env.step(self._own_action(own))
            truncated[i] &= not terminated[i]
            self._final[i] = np.asarray(observation).ravel()
            ended = terminated[i] or truncated[i]
            self._state[i] = np.asarray(env.reset()[0]).ravel() if ended else self._final[i]
        return Step(
            Observation(None, torch.from_numpy(self._state)),
            torch.from_numpy(reward),
            torch.from_numpy(terminated),
            torch.from_numpy(truncated),
            Observation(None, torch.from_numpy(self._final)),
        )

    def close(self) -> None:
        for env in self.envs:
            env.close()
