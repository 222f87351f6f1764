"""A VecEnv as a `gymnasium.vector.VectorEnv`: numpy in, numpy out, for learners written against Gymnasium.

API: https://gymnasium.farama.org/api/vector/ and, for what a step returns where an episode ends,
https://gymnasium.farama.org/api/vector/autoreset/ (mode SAME_STEP).
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from environments.errors import InputError
from environments.market_env import MarketVecEnv
from environments.observation import Observation, build_observation
from environments.vec_env import Step, VecEnv

Info = dict[str, Any]


class GymnasiumVectorView(VectorEnv):
    """N environments with Gymnasium's vector interface.

    Observations are (N, D) float32, 0 where a value is unknown; rewards (N,) float64; flags (N,) bool. Every array is
    the caller's own: later steps do not change it.

    Episodes restart in the step that ends them. Where at least one ended, `infos` holds

        final_obs    (N,) objects: the true last observation (D,), None where no episode ended
        final_info   the ended episodes' last infos, {name: (N,), _name: (N,) bool}
        _final_obs, _final_info    (N,) bool, where

    Over a market the infos are those of the single environments: bar, equity, fees and traded_value of the step,
    and the first bar where an episode began. Other environments have none.

    Args:
        env: any VecEnv; it is closed with the view.
    """

    def __init__(self, env: VecEnv) -> None:
        self.env = env
        self.num_envs = env.n_envs
        self.single_observation_space = env.single_observation_space
        self.single_action_space = env.single_action_space
        self.observation_space = batch_space(env.single_observation_space, env.n_envs)
        self.action_space = batch_space(env.single_action_space, env.n_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Info]:
        """Start all episodes anew: observations (N, D) and their infos.

        Raises:
            InputError: options were given: no environment here has any, and none can be reset alone.
        """
        if options:
            raise InputError(f"reset options {', '.join(options)}: none is accepted, all environments restart together")
        super().reset(seed=seed)
        observation = self.env.reset(seed)
        infos: Info = {}
        if observation.bar is not None:
            _put(infos, {"bar": observation.bar.cpu().numpy()}, np.ones(self.num_envs, dtype=bool))
        return self._dense(observation), infos

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Info]:
        """(observations, rewards, terminations, truncations, infos). actions: (N, ...) of `action_space`.

        Raises:
            InputError: actions of another shape, or NaN among them.
        """
        batch = np.asarray(actions, dtype=self.action_space.dtype)
        if batch.shape != self.action_space.shape:
            raise InputError(f"actions have shape {batch.shape}: {self.action_space.shape} is accepted")
        if isinstance(self.single_action_space, gymnasium.spaces.Box) and np.isnan(batch).any():
            raise InputError(f"actions hold NaN: numbers in {self.single_action_space} are accepted")
        step = self.env.step(torch.from_numpy(batch).to(self.env.device))
        terminated, truncated = step.terminated.cpu().numpy().copy(), step.truncated.cpu().numpy().copy()
        reward = step.reward.double().cpu().numpy()
        return self._dense(step.observation), reward, terminated, truncated, self._infos(step, terminated | truncated)

    def close_extras(self, **kwargs: Any) -> None:
        self.env.close()

    def _infos(self, step: Step, ended: np.ndarray) -> Info:
        infos: Info = {}
        last = self._account(step)
        if ended.any():
            final = np.full(self.num_envs, None, dtype=object)
            bar, state = step.final_observation
            which = torch.from_numpy(ended).to(self.env.device)
            rows = self._dense(Observation(None if bar is None else bar[which], state[which]))
            for i, row in zip(np.flatnonzero(ended), rows, strict=True):
                final[i] = row
            final_info: Info = {}
            _put(final_info, last, ended)
            infos |= {"final_obs": final, "_final_obs": ended.copy()}
            infos |= {"final_info": final_info, "_final_info": ended.copy()}
        _put(infos, last, ~ended)
        if ended.any() and step.observation.bar is not None:
            first = np.where(ended, step.observation.bar.cpu().numpy(), last.get("bar", 0))
            _put(infos, {"bar": first}, np.ones(self.num_envs, dtype=bool))
        return infos

    def _account(self, step: Step) -> dict[str, np.ndarray]:
        """What the single environments tell of a step, (N,) each; empty outside a market."""
        if not isinstance(self.env, MarketVecEnv):
            return {}
        told = {
            "bar": step.final_observation.bar,
            "equity": self.env.last_equity,
            "fees": self.env.fees,
            "traded_value": self.env.traded_value.sum(-1),
        }
        return {name: value.cpu().numpy().copy() for name, value in told.items()}

    def _dense(self, observation: Observation) -> np.ndarray:
        dense = build_observation(self.env.rows, observation, self.env.lookback)
        return torch.nan_to_num(dense).cpu().numpy()  # nan_to_num copies: no view of the environment's buffers


def _put(infos: Info, values: dict[str, np.ndarray], where: np.ndarray) -> None:
    """Add `values` as Gymnasium keeps them: an array per name, zero elsewhere, and beside it the mask `_name`."""
    if where.any():
        for name, value in values.items():
            infos[name], infos[f"_{name}"] = np.where(where, value, value.dtype.type(0)), where.copy()
