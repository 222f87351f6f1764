"""The markets of Alpaca as environments: crypto and stocks, vectorised and single.

All four are one core, `MarketVecEnv`. The vectorised ones add the check that the market is theirs; the
single ones are its Gymnasium view at N = 1.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch

from environments.errors import InputError
from environments.market import Market
from environments.market_env import MarketVecEnv
from environments.observation import Observation, build_observation
from environments.vec_env import VecEnv


class _VenueVecEnv(MarketVecEnv):
    asset_class: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.__signature__ = inspect.signature(MarketVecEnv)  # options are read off the signature

    def __init__(self, market: Market, n_envs: int, **options: Any) -> None:
        if market.asset_class != self.asset_class:
            raise InputError(f"{type(self).__name__} trades {self.asset_class}, the market is {market.asset_class}")
        super().__init__(market, n_envs, **options)


class VectorizedCryptoEnvAlpaca(_VenueVecEnv):
    """N environments over a crypto market: 25 bps commission, Alpaca's crypto sizes. Options: `MarketVecEnv`."""

    asset_class = "crypto"


class VectorizedStockEnvAlpaca(_VenueVecEnv):
    """N environments over a stock market: no commission, fractional shares. Options: `MarketVecEnv`."""

    asset_class = "stock"


class SingleMarketEnv(gymnasium.Env):
    """One environment of a market with Gymnasium's interface (https://gymnasium.farama.org/api/env/).

    Observations are dense float32 vectors, 0 where a value is unknown. `info` holds bar (int), equity,
    fees and traded value (currency) of the step. Options: those of `MarketVecEnv` but n_envs and n_members.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    vectorized: ClassVar[type[MarketVecEnv]]

    def __init_subclass__(cls) -> None:
        signature = inspect.signature(MarketVecEnv)
        kept = [p for name, p in signature.parameters.items() if name not in ("n_envs", "n_members")]
        cls.__signature__ = signature.replace(parameters=kept)

    def __init__(self, market: Market, **options: Any) -> None:
        self.core = self.vectorized(market, 1, **options)
        self.observation_space = self.core.single_observation_space
        self.action_space = self.core.single_action_space
        self._fresh = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        # The core starts its next episode in the step that ends one, so a reset that follows such a step
        # finds it begun already.
        observation = (
            Observation(self.core.bar, self.core._first_state)
            if self._fresh and seed is None
            else self.core.reset(seed)
        )
        self._fresh = False
        return self._dense(observation), {"bar": int(self.core.bar)}

    def step(self, action: Any):
        batch = torch.as_tensor(np.asarray(action)).unsqueeze(0).to(self.core.device)
        step = self.core.step(batch)
        terminated, truncated = bool(step.terminated), bool(step.truncated)
        self._fresh = terminated or truncated
        last = step.final_observation
        info = {
            "bar": int(last.bar),
            "equity": float(self.core.last_equity),
            "fees": float(self.core.fees[0]),
            "traded_value": float(self.core.traded_value[0].sum()),
        }
        return self._dense(last), float(step.reward), terminated, truncated, info

    def _dense(self, observation: Observation) -> np.ndarray:
        dense = build_observation(self.core.rows, observation, self.core.lookback)[0]
        return torch.nan_to_num(dense).cpu().numpy()


class CryptoEnvAlpaca(SingleMarketEnv):
    """One crypto environment. Options: `MarketVecEnv` but n_envs and n_members."""

    vectorized = VectorizedCryptoEnvAlpaca


class StockEnvAlpaca(SingleMarketEnv):
    """One stock environment. Options: `MarketVecEnv` but n_envs and n_members."""

    vectorized = VectorizedStockEnvAlpaca


def default_env(market: Market) -> type[VecEnv]:
    """The vectorised environment for the market's asset class."""
    return VectorizedCryptoEnvAlpaca if market.asset_class == "crypto" else VectorizedStockEnvAlpaca
