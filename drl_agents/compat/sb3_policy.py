"""What a model of the stable-baselines3 door shows as its `policy`, and which arguments it takes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from environments.errors import InputError


class MlpPolicy:
    """The policy of a model: our network, with `predict` as stable-baselines3's ActorCriticPolicy has it.

    All else is the network's own, such as `parameters()` and `state_dict()`.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def predict(
        self,
        observation: np.ndarray,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """As the model's `predict`."""
        return self._model.predict(observation, state, episode_start, deterministic)

    def set_training_mode(self, mode: bool) -> None:
        """As `nn.Module.train`."""
        self._model.agent.policy.train(mode)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._model.agent.policy, name)


def check_policy(policy: Any) -> None:
    """Raises InputError unless it is "MlpPolicy", this module's class, or stable-baselines3's own."""
    theirs = isinstance(policy, type) and policy.__module__ == "stable_baselines3.common.policies"
    if policy != "MlpPolicy" and policy is not MlpPolicy and not (theirs and policy.__name__ == "ActorCriticPolicy"):
        shown = policy.__name__ if isinstance(policy, type) else repr(policy)
        raise InputError(f"policy {shown}: accepted is 'MlpPolicy'")


def arguments_of(function: Callable[..., Any]) -> list[str]:
    """The names of a function's arguments."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    own = inspect.signature(function).parameters.values()
    return [one.name for one in own if one.kind not in kinds and one.name not in ("self", "cls")]


def refuse_unknown(call: str, given: Iterable[str], accepted: Iterable[str]) -> None:
    """Raises InputError naming the first of `given` that is not accepted, and the nearest that is."""
    accepted = list(accepted)
    for name in given:
        if name not in accepted:
            nearest = difflib.get_close_matches(name, accepted, n=1, cutoff=0.0)[0]
            raise InputError(f"{call} has no argument {name}; the nearest is {nearest}")
