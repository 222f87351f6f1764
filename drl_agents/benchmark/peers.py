"""Other learners on the same work: PPO of stable-baselines3 and of SBX, its JAX sibling.

https://stable-baselines3.readthedocs.io/en/master/modules/ppo.html and https://github.com/araffin/sbx. Both are the
extra `peers`; without them a peer is reported as missing.
"""

from __future__ import annotations

import importlib
import math
import warnings
from typing import Any

import numpy as np
import torch

from drl_agents.benchmark.competitors import Competitor
from drl_agents.benchmark.plain_env import PlainMarketEnv
from drl_agents.benchmark.work import Configuration, Work, build_env
from environments.errors import InputError
from environments.market import Market
from environments.market_env import MarketVecEnv
from environments.observation import Observation, build_observation

MODULES = {"sb3": "stable_baselines3", "sbx": "sbx"}
PACKAGES = {"sb3": "stable-baselines3", "sbx": "sbx-rl"}


class PeerMissing(RuntimeError):
    """A peer's package is not installed; the message says which."""


def peer_competitor(configuration: Configuration, work: Work, market: Market) -> Competitor:
    """PPO of a peer, with the work's network, epochs, minibatches and rollouts, else its own defaults.

    Over plain single environments it learns on the CPU, over the batched environment on the market's device. One call
    is `learn` for one iteration: collecting and training.

    Raises:
        PeerMissing: its package, or one it needs, is not installed.
        InputError: the configuration asks for what peers do not do.
    """
    asked = [n for n, given in (("env", configuration.env), ("agent", configuration.agent)) if given]
    if asked or configuration.part != "iteration" or configuration.n_members != 1:
        raise InputError(f"{configuration.name}: peers do whole iterations of one member without options")
    try:
        library = importlib.import_module(MODULES[configuration.learner])
        from stable_baselines3.common.vec_env import DummyVecEnv
    except ImportError as error:
        raise PeerMissing(f"{PACKAGES[configuration.learner]} is not installed (extra: peers): {error}") from error
    n_envs, device = configuration.n_envs, "cpu"
    if configuration.batched:
        envs, device = sb3_vec_env(build_env(configuration, work, market)), str(market.device)
    else:
        plain = {"episode_length": work.episode_length, "commission_bps": work.commission_bps}
        envs = DummyVecEnv([lambda: PlainMarketEnv(market, **plain)] * n_envs)
    horizon, samples = configuration.horizon(work), configuration.steps(work)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that networks this small learn faster on a CPU
        model = library.PPO(
            "MlpPolicy",
            envs,
            n_steps=horizon,
            batch_size=math.ceil(samples / work.num_minibatches),
            n_epochs=work.update_epochs,
            policy_kwargs={
                "net_arch": {"pi": list(work.hidden), "vf": list(work.hidden)},
                "activation_fn": _tanh(configuration.learner),
            },
            seed=work.seed,
            device=device,
            verbose=0,
        )

    def call() -> None:
        model.learn(samples, reset_num_timesteps=False, log_interval=None)

    def check() -> None:
        done = model.num_timesteps
        loss = model.logger.name_to_value.get("train/value_loss", math.nan) if done else math.nan
        if not math.isfinite(loss) or done % samples:
            raise RuntimeError(f"{configuration.name}: value loss {loss} after {done} steps")

    return Competitor(samples, call, check)


def _tanh(learner: str) -> Any:
    return importlib.import_module("flax.linen").tanh if learner == "sbx" else torch.nn.Tanh


def sb3_vec_env(env: MarketVecEnv) -> Any:
    """`env` as a `stable_baselines3.common.vec_env.VecEnv`, with as little between the two as can be.

    Features that are unknown are 0. In the info of an environment whose episode ended are "terminal_observation" and
    "TimeLimit.truncated"; the other infos are empty.
    """
    from stable_baselines3.common.vec_env import VecEnv

    class BatchedView(VecEnv):
        def __init__(self) -> None:
            self.rows = torch.nan_to_num(env.rows)
            self.infos: list[dict[str, Any]] = [{} for _ in range(env.n_envs)]
            super().__init__(env.n_envs, env.single_observation_space, env.single_action_space)

        def reset(self) -> np.ndarray:
            return self.dense(env.reset())

        def step_async(self, actions: np.ndarray) -> None:
            self.actions = torch.from_numpy(actions).to(env.device)

        def step_wait(self):
            step = env.step(self.actions)
            # Copies: the flags, rewards and observations are kept while the environment steps on.
            done = (step.terminated | step.truncated).cpu().numpy().copy()
            infos = self.infos
            if done.any():
                infos = self.infos.copy()
                ended = np.flatnonzero(done)
                which = torch.from_numpy(ended).to(env.device)
                last = self.dense(Observation(*(x[which] for x in step.final_observation)))
                truncated = step.truncated.cpu().numpy()
                for i, row in zip(ended, last, strict=True):
                    infos[i] = {"terminal_observation": row, "TimeLimit.truncated": bool(truncated[i])}
            return self.dense(step.observation), step.reward.cpu().numpy().copy(), done, infos

        def dense(self, observation: Observation) -> np.ndarray:
            return build_observation(self.rows, observation, env.lookback).cpu().numpy()

        def close(self) -> None:
            env.close()

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            # Asked for "render_mode" by the constructor; no environment has one of its own.
            return [None for _ in self._get_indices(indices)]

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise AttributeError(f"{attr_name}: the environments share one object")

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            raise AttributeError(f"{method_name}: the environments share one object")

        def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
            return [False for _ in self._get_indices(indices)]

    return BatchedView()
