"""build_env: from a name to a vectorised environment.

An environment is found by a built-in name, by an entry point of the group "drl_agents.envs", by
"package.module:Class", or by "gym:ID" for anything registered with Gymnasium. Whether it is vectorised is read off its
constructor: one that names `n_envs` is; one that does not is single, and is run N times.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import gymnasium

from environments.adapters import GymnasiumVecEnv
from environments.alpaca_env import (
    CryptoEnvAlpaca,
    StockEnvAlpaca,
    VectorizedCryptoEnvAlpaca,
    VectorizedStockEnvAlpaca,
)
from environments.errors import InputError
from environments.market import Market
from environments.vec_env import VecEnv

ENTRY_POINTS = "drl_agents.envs"
BUILT_IN: dict[str, type] = {
    cls.__name__: cls for cls in (VectorizedCryptoEnvAlpaca, VectorizedStockEnvAlpaca, CryptoEnvAlpaca, StockEnvAlpaca)
}


def find_env(name: str) -> Callable[..., Any]:
    """The constructor `name` stands for.

    Raises:
        InputError: nothing has that name; the message lists what does.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name in installed:
        return installed[name].load()
    if name.startswith("gym:"):
        identity = name.removeprefix("gym:")
        if identity not in gymnasium.registry:
            close = difflib.get_close_matches(identity, gymnasium.registry, n=3)
            raise InputError(
                f"environment {name!r}: Gymnasium knows no {identity!r}; close: {', '.join(close) or 'none'}"
            )
        return lambda: gymnasium.make(identity)
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise InputError(f"environment {name!r}: {error}") from error
    accepted = ", ".join((*BUILT_IN, *installed))
    raise InputError(f"environment {name!r}: accepted are {accepted}, gym:ID, package.module:Class")


def is_vectorized(constructor: Callable[..., Any]) -> bool:
    """True when the constructor names `n_envs`."""
    return "n_envs" in inspect.signature(constructor).parameters


def build_env(name: str | Callable[..., Any], market: Market | None, n_envs: int, **options: Any) -> VecEnv:
    """N environments of `name`, whatever kind it is.

    The market and the seed are offered, not imposed: a constructor gets them where it names them. Every
    other option must be one the constructor names.

    Raises:
        InputError: unknown name or option (the message lists the accepted ones), or n_envs < 1.
    """
    if n_envs < 1:
        raise InputError(f"n_envs={n_envs}: at least 1 is needed")
    constructor = find_env(name) if isinstance(name, str) else name
    label = name if isinstance(name, str) else constructor.__name__
    parameters = inspect.signature(constructor).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    own_seed = options.pop("seed", None)
    unknown = sorted(set(options) - set(parameters))
    if unknown and not takes_any:
        accepted = ", ".join(n for n in parameters if n not in ("market", "n_envs", "self"))
        raise InputError(f"environment {label} has no option {', '.join(unknown)}: accepted are {accepted or 'none'}")
    if "market" in parameters:
        if market is None:
            raise InputError(f"environment {label} needs a market")
        options["market"] = market
    if is_vectorized(constructor):
        if "seed" in parameters and own_seed is not None:
            options["seed"] = own_seed
        env = constructor(n_envs=n_envs, **options)
        if not isinstance(env, VecEnv):
            raise InputError(f"environment {label} names n_envs but is not a VecEnv")
        return env
    return GymnasiumVecEnv(lambda: constructor(**options), n_envs, seed=own_seed or 0)
