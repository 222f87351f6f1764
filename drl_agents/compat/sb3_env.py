"""Environments as stable-baselines3's users hand them over, as a VecEnv that tells of every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from environments.adapters import GymnasiumVecEnv
from environments.errors import InputError
from environments.observation import Observation
from environments.vec_env import Step, VecEnv


class SB3VecEnv(VecEnv):
    """A vector environment with stable-baselines3's interface (`step_async`, `step_wait`, four results, resets within
    the step) as a VecEnv. Box actions are stretched from [-1, 1] to its own bounds.

    https://stable-baselines3.readthedocs.io/en/master/guide/vec_envs.html
    """

    def __init__(self, venv: Any) -> None:
        if not isinstance(venv.observation_space, gymnasium.spaces.Box):
            raise InputError(f"observations must be a Box, not {venv.observation_space}")
        self.venv, self.n_envs, self.device = venv, venv.num_envs, torch.device("cpu")
        self.state_size = int(np.prod(venv.observation_space.shape))
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self.state_size,), np.float32)
        self.own_space = space = venv.action_space
        self.single_action_space = space
        if isinstance(space, gymnasium.spaces.Discrete) and space.start != 0:
            raise InputError(f"actions must be a Box or a Discrete from 0, not {space}")
        if isinstance(space, gymnasium.spaces.Box):
            if not np.isfinite([space.low, space.high]).all():
                raise InputError(f"Box actions need finite bounds, not {space}")
            self.single_action_space = gymnasium.spaces.Box(-1.0, 1.0, space.shape, np.float32)

    def reset(self, seed: int | None = None) -> Observation:
        if seed is not None:
            self.venv.seed(seed)
        return self._seen(self.venv.reset())

    def step(self, action: Tensor) -> Step:
        seen, reward, done, infos = self.venv.step(own_action(self.own_space, action.numpy()))
        truncated = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        last = np.array(seen, dtype=np.float32, copy=True)
        for i in np.flatnonzero(done):
            last[i] = infos[i]["terminal_observation"]
        reward = torch.as_tensor(np.asarray(reward, dtype=np.float32))
        ended, cut = torch.from_numpy(np.asarray(done, dtype=bool)), torch.from_numpy(truncated)
        return Step(self._seen(seen), reward, ended & ~cut, ended & cut, self._seen(last))

    def _seen(self, observation: np.ndarray) -> Observation:
        flat = np.asarray(observation, dtype=np.float32).reshape(self.n_envs, -1)
        return Observation(None, torch.from_numpy(flat.copy()))

    def close(self) -> None:
        self.venv.close()


class Told(VecEnv):
    """A VecEnv that calls `on_step` after every step."""

    def __init__(self, env: VecEnv, on_step: Callable[[Step], None]) -> None:
        self.env, self.on_step = env, on_step
        names = ("n_envs", "n_members", "device", "rows", "lookback", "state_size", "envs_per_clock",
                 "single_observation_space", "single_action_space")  # fmt: skip
        for name in names:
            setattr(self, name, getattr(env, name))

    def reset(self, seed: int | None = None) -> Observation:
        return self.env.reset(seed)

    def step(self, action: Tensor) -> Step:
        step = self.env.step(action)
        self.on_step(step)
        return step

    def normalizer_stats(self) -> tuple[Tensor, Tensor] | None:
        return self.env.normalizer_stats()

    def training_rows(self) -> list[Tensor] | None:
        return self.env.training_rows()

    def close(self) -> None:
        self.env.close()


def as_vec_env(env: Any, seed: int) -> tuple[VecEnv, gymnasium.spaces.Box, gymnasium.Space]:
    """(VecEnv, observation space, the environment's own action space) of what a user of stable-baselines3 hands over.

    env: an id of Gymnasium, one environment, a vector environment of stable-baselines3's interface, or a VecEnv.

    Raises:
        InputError: it is none of these, or its spaces are not played.
    """
    if isinstance(env, VecEnv):
        return env, env.single_observation_space, env.single_action_space
    if isinstance(env, str):
        try:
            env = gymnasium.make(env)
        except gymnasium.error.Error as error:
            raise InputError(f"environment {env!r}: {str(error).splitlines()[0]}") from error
    if isinstance(env, gymnasium.Env):
        return GymnasiumVecEnv(lambda: env, 1, seed=seed), env.observation_space, env.action_space
    if hasattr(env, "step_async") and hasattr(env, "num_envs") and not isinstance(env, gymnasium.vector.VectorEnv):
        return SB3VecEnv(env), env.observation_space, env.action_space
    raise InputError(
        f"environment {type(env).__name__}: accepted are a Gymnasium id or environment, a vector environment of "
        "stable-baselines3, and a VecEnv"
    )


def own_action(space: gymnasium.Space, action: np.ndarray) -> np.ndarray:
    """Actions of a policy (n, ...) in the environment's own units; Box actions within its bounds."""
    if not isinstance(space, gymnasium.spaces.Box):
        return action
    low, high = space.low.ravel(), space.high.ravel()
    stretched = low + (np.clip(action, -1, 1) + 1) * 0.5 * (high - low)
    # The product may round past a bound.
    return np.clip(stretched, low, high).reshape(-1, *space.shape).astype(space.dtype)


def policy_action(space: gymnasium.Space, action: np.ndarray) -> np.ndarray:
    """The inverse of `own_action`: (n, ...) in the environment's own units as a VecEnv takes them."""
    if not isinstance(space, gymnasium.spaces.Box):
        return action
    flat = action.reshape(-1, *space.shape)
    return (2 * (flat - space.low) / (space.high - space.low) - 1).astype(np.float32)
