"""What stable-baselines3's callbacks expect of a model: the calls in their order, a logger, episodes' returns.

Its own callbacks (EvalCallback, CheckpointCallback, ...) work unchanged, without its package being needed here:
https://stable-baselines3.readthedocs.io/en/master/guide/callbacks.html
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from environments.errors import InputError
from environments.vec_env import Step

_CALLS = ("on_training_start", "on_rollout_start", "on_step", "on_rollout_end", "on_training_end", "update_locals")


class Callbacks:
    """Several callbacks as one: all are called, and training goes on while none returns False."""

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self.callbacks = list(callbacks)

    def init_callback(self, model: Any) -> None:
        for callback in self.callbacks:
            callback.init_callback(model)

    def on_training_start(self, local: dict[str, Any], world: dict[str, Any]) -> None:
        for callback in self.callbacks:
            callback.on_training_start(local, world)

    def on_rollout_start(self) -> None:
        for callback in self.callbacks:
            callback.on_rollout_start()

    def update_locals(self, local: dict[str, Any]) -> None:
        for callback in self.callbacks:
            callback.update_locals(local)

    def on_step(self) -> bool:
        # Every one is asked, also after one has said no.
        return all([callback.on_step() is not False for callback in self.callbacks])

    def on_rollout_end(self) -> None:
        for callback in self.callbacks:
            callback.on_rollout_end()

    def on_training_end(self) -> None:
        for callback in self.callbacks:
            callback.on_training_end()


class FunctionCallback(Callbacks):
    """A function of (locals, globals), called after every step; it stops training by returning False."""

    def __init__(self, function: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
        super().__init__(())
        self.function, self.local = function, {}

    def update_locals(self, local: dict[str, Any]) -> None:
        self.local = local

    def on_step(self) -> bool:
        return self.function(self.local, {}) is not False


def as_callback(callback: Any) -> Callbacks:
    """What `learn` was given as one callback.

    Raises:
        InputError: it is neither None, a function, a list, nor has stable-baselines3's methods.
    """
    if callback is None:
        return Callbacks(())
    if isinstance(callback, list | tuple):
        return Callbacks([as_callback(one) for one in callback])
    if all(hasattr(callback, name) for name in (*_CALLS, "init_callback")):
        return Callbacks([callback])
    if callable(callback):
        return FunctionCallback(callback)
    raise InputError(
        f"callback {type(callback).__name__}: accepted are a function, a callback of stable-baselines3, a list"
    )


class Logger:
    """`record` and `dump` as callbacks use them. verbose: print what is dumped.

    name_to_value: what was recorded since the last dump.
    """

    def __init__(self, verbose: int) -> None:
        self.verbose = verbose
        self.name_to_value: dict[str, Any] = {}

    def record(self, key: str, value: Any, exclude: Any = None) -> None:
        self.name_to_value[key] = value

    def record_mean(self, key: str, value: float | None, exclude: Any = None) -> None:
        self.record(key, value)

    def dump(self, step: int = 0) -> None:
        if self.verbose:
            width = max(map(len, self.name_to_value), default=0)
            for key, value in self.name_to_value.items():
                print(f"{key:<{width}}  {value:.4g}" if isinstance(value, int | float) else f"{key:<{width}}  {value}")
            print(flush=True)
        self.name_to_value = {}


class Progress:
    """Returns and lengths of the last episodes of N environments, as stable-baselines3's Monitor notes them."""

    def __init__(self, window: int, n_envs: int) -> None:
        self.episodes: deque[dict[str, float]] = deque(maxlen=window)
        self.reward = np.zeros(n_envs, dtype=np.float32)
        self.done = np.zeros(n_envs, dtype=bool)
        self.infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]
        self._return, self._length = np.zeros(n_envs), np.zeros(n_envs, dtype=np.int64)

    def take(self, step: Step) -> None:
        """Note one step."""
        self.reward = step.reward.cpu().numpy()
        self.done = (step.terminated | step.truncated).cpu().numpy()
        self._return += self.reward
        self._length += 1
        self.infos = [{} for _ in self.infos]
        for i in np.flatnonzero(self.done):
            episode = {"r": float(self._return[i]), "l": int(self._length[i])}
            self.infos[i]["episode"] = episode
            self.episodes.append(episode)
        self._return[self.done] = 0
        self._length[self.done] = 0

    def figures(self) -> dict[str, float]:
        """Means over the window; nothing before the first episode has ended."""
        if not self.episodes:
            return {}
        return {
            "rollout/ep_rew_mean": float(np.mean([e["r"] for e in self.episodes])),
            "rollout/ep_len_mean": float(np.mean([e["l"] for e in self.episodes])),
        }
