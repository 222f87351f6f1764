"""The environment of a model as its users get it back: with stable-baselines3's vector interface.

https://stable-baselines3.readthedocs.io/en/master/guide/vec_envs.html
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import gymnasium
import numpy as np
import torch

from drl_agents.compat.sb3_env import SB3VecEnv, policy_action
from environments.errors import InputError
from environments.observation import Observation, build_observation
from environments.vec_env import VecEnv


class Alone:
    """What a view needs of stable-baselines3's `VecEnv` where the package is not installed."""

    def __init__(self, num_envs: int, observation_space: gymnasium.Space, action_space: gymnasium.Space) -> None:
        self.num_envs, self.observation_space, self.action_space = num_envs, observation_space, action_space
        self._reset_seeds()

    def _reset_seeds(self) -> None:
        self._seeds: list[int | None] = [None] * self.num_envs

    def _get_indices(self, indices: int | Sequence[int] | None) -> Sequence[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else indices

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed environment i's next reset with seed + i."""
        self._seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        return self._seeds

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """(observations (N, ...), rewards (N,), dones (N,), infos) of actions (N, ...)."""
        self.step_async(actions)
        return self.step_wait()


class _View:
    """A VecEnv by stable-baselines3's methods. Episodes restart in the step that ends them, and its info then holds
    "terminal_observation" and "TimeLimit.truncated". What is unknown of a market stays NaN, which `predict` knows.

    env: its actions are in [-1, 1] where they are a Box. observation_space, action_space: as users see them.
    """

    def __init__(self, env: VecEnv, observation_space: gymnasium.spaces.Box, action_space: gymnasium.Space) -> None:
        self.own = env
        super().__init__(env.n_envs, observation_space, action_space)

    def reset(self) -> np.ndarray:
        """First observations (N, ...)."""
        observation = self.own.reset(self._seeds[0])
        self._reset_seeds()
        return self._dense(observation)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = torch.from_numpy(policy_action(self.action_space, np.asarray(actions))).to(self.own.device)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        step = self.own.step(self._actions)
        done, cut = (flags.cpu().numpy().copy() for flags in (step.terminated | step.truncated, step.truncated))
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(one)} for one in cut]
        if done.any():
            last = self._dense(step.final_observation)
            for i in np.flatnonzero(done):
                infos[i]["terminal_observation"] = last[i]
        return self._dense(step.observation), step.reward.cpu().numpy().copy(), done, infos

    def close(self) -> None:
        self.own.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        owners = getattr(self.own, "envs", None) or [self.own] * self.num_envs
        own = [getattr(owner, attr_name, None) if attr_name == "render_mode" else getattr(owner, attr_name)
               for owner in owners]  # fmt: skip
        return [own[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise InputError(f"set_attr {attr_name}: the environments share one object, none has attributes of its own")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [method(*args, **kwargs) for method in self.get_attr(method_name, indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def _dense(self, observation: Observation) -> np.ndarray:
        dense = build_observation(self.own.rows, observation, self.own.lookback)
        return dense.cpu().numpy().reshape(-1, *self.observation_space.shape).copy()


def sb3_view(given: Any, env: VecEnv, observation_space: gymnasium.spaces.Box, action_space: gymnasium.Space) -> Any:
    """An environment with stable-baselines3's interface, and an instance of its `VecEnv` where it is installed.

    Args:
        given: what the model was given; a vector environment of stable-baselines3's is returned as it is. env: `given`
            as a VecEnv: stepping the one steps the other. observation_space, action_space: in the user's units.
    """
    if isinstance(env, SB3VecEnv):
        return env.venv
    base = _base()
    if base is not Alone and isinstance(given, str | gymnasium.Env):
        from stable_baselines3.common.env_util import is_wrapped
        from stable_baselines3.common.monitor import Monitor
        from stable_baselines3.common.vec_env import DummyVecEnv

        single = env.envs[0]
        return DummyVecEnv([lambda: single if is_wrapped(single, Monitor) else Monitor(single)])
    return type("VecView", (_View, base), {"__doc__": _View.__doc__})(env, observation_space, action_space)


@cache
def _base() -> type:
    try:
        from stable_baselines3.common.vec_env import VecEnv as SB3
    except ImportError:
        return Alone
    return SB3
