"""A market whose best policy is known: an AR(1) signal leads returns and trading costs are linear.

    s[t+1] = rho s[t] + sqrt(1 - rho^2) eps          E[R[t+1] | s[t]] = exp(sigma ic s[t] - (sigma ic)^2 / 2) - 1

R is the simple return of the next bar, which an order decided on s[t] captures whole; without the signal it is 0 on
average, so that neither cash nor holding earns anything. A position w in [0, 1] moved to w' costs c |w' - w|.
Value iteration gives the best policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from environments.data.source import load_bars
from environments.data.synthetic import MINUTES_PER_YEAR
from environments.market import Market
from environments.market_env import MarketVecEnv
from environments.observation import build_observation

BPS = 1e-4


@dataclass(frozen=True)
class Planted:
    """ic: correlation of the signal with the next return. cost_bps: of traded value. rho: of the signal per bar."""

    ic: float
    cost_bps: float
    rho: float = 0.9
    sigma: float = 0.01

    def expected_return(self, signal: Any) -> Any:
        """E[R | s], see above."""
        return np.expm1(self.sigma * self.ic * signal - (self.sigma * self.ic) ** 2 / 2)

    def market(self, n_bars: int, seed: int) -> Market:
        """Hourly bars of one coin."""
        drift = -(self.sigma**2) / 2 * MINUTES_PER_YEAR / 60
        kind = {"kind": "signal", "n_assets": 1, "sigma": self.sigma, "ic": self.ic, "rho": self.rho, "drift": drift}
        return Market.from_bars(load_bars("synthetic", options={**kind, "n_bars": n_bars}, seed=seed))

    def env_options(self, action: str = "weights") -> dict[str, Any]:
        """Of `MarketVecEnv`: all features are seen, the signal the last of them; a full trade is all of the equity."""
        costs = {"commission_bps": self.cost_bps, "spread_bps": 0.0, "slippage_bps": 0.0, "impact_coef": 0.0}
        full = {"max_trade": 1.0} if action == "trades" else {}
        return {"action": action, "fee_in": "quote", **full, **costs}


@dataclass(frozen=True)
class Optimum:
    """gain: per bar, the best mean of w' E[R | s] - c |w' - w|. policy: (S, W) the best w' at signals (S,) and
    positions (W,)."""

    gain: float
    signals: np.ndarray
    positions: np.ndarray
    policy: np.ndarray

    def target(self, signal: np.ndarray, position: np.ndarray) -> np.ndarray:
        """The best w' at the nearest points of the grid."""
        i = np.abs(signal[..., None] - self.signals).argmin(-1)
        j = np.abs(position[..., None] - self.positions).argmin(-1)
        return self.policy[i, j]


def optimum(planted: Planted, n_signals: int = 161, n_positions: int = 11, tolerance: float = 1e-10) -> Optimum:
    """Relative value iteration (White, 1963) over a grid of signals and positions.

        h(s, w) <- max over w' of [ w' E[R | s] - c |w' - w| + E[h(s', w') | s] ],  less its value at one state

    What is taken off converges to the gain. The signal moves on the grid as in Tauchen (1986): to a point with the
    probability of the interval around it. What a position of neither 0 nor 1 moves by itself is left out; the best
    policy holds all or nothing.
    """
    signals, positions = np.linspace(-5, 5, n_signals), np.linspace(0, 1, n_positions)
    half = (signals[1] - signals[0]) / 2
    spread = np.sqrt(1 - planted.rho**2)
    edges = np.concatenate([[-np.inf], signals[:-1] + half, [np.inf]])
    below = _normal_cdf((edges - planted.rho * signals[:, None]) / spread)
    move = np.diff(below, axis=1)  # (S, S')
    cost = planted.cost_bps * BPS * np.abs(positions[:, None] - positions)  # (W, W')
    now = planted.expected_return(signals)[:, None, None] * positions - cost  # (S, W, W')
    value = np.zeros((n_signals, n_positions))
    while True:
        choices = now + (move @ value)[:, None, :]
        after = choices.max(-1)
        gain = after - value
        value = after - after[n_signals // 2, 0]
        if np.ptp(gain) < tolerance:
            return Optimum(float(gain.mean()), signals, positions, positions[choices.argmax(-1)])


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    return torch.special.ndtr(torch.as_tensor(x)).numpy()


def walking(
    planted: Planted, market: Market, window: tuple[int, int], n_walks: int, n_members: int, action: str = "trades"
) -> MarketVecEnv:
    """`n_walks` accounts for each member, each walking its part of the window."""
    edges = np.linspace(*window, n_walks + 1).astype(int)  # all but as long as one another
    parts = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    return MarketVecEnv(
        market, n_walks * n_members, n_members=n_members, segments=parts, random_start=False, episode_length=None,
        **planted.env_options(action),
    )  # fmt: skip


@torch.no_grad()
def gains(planted: Planted, env: MarketVecEnv, decide: Callable[[Tensor], Tensor]) -> Tensor:
    """(P,) mean per bar of w' E[R | s] - fees / equity over the walks of each member: what the policy earns, with the
    chance of the bars themselves averaged out.

    Args:
        env: of `walking`. decide: dense observations (P, n, D) -> actions (P, n, 1).
    """
    signal = env.market.extra[:, 0, env.market.extra_names.index("signal")]
    signal = torch.as_tensor(planted.expected_return(signal.numpy()))
    observation, p = env.reset(), env.n_members
    steps = int((env.stop - env.bar).min()) - 1
    total = torch.zeros(env.n_envs, dtype=torch.float64)
    for _ in range(steps):
        bar, before = env.bar.clone(), env.equity.clone()
        dense = build_observation(env.rows, observation, env.lookback).view(p, env.n_envs // p, -1)
        observation = env.step(decide(dense).flatten(0, 1)).observation
        held = env.last_shares[:, 0] * env.market.open[bar + 1, 0] / before
        total += held * signal[bar] - env.fees / before
    return total.view(p, -1).mean(1) / steps


def best_decision(best: Optimum) -> Callable[[Tensor], Tensor]:
    """`optimum` as a policy over the environment's observations (..., signal, cash share, weight, profit, idle)."""

    def decide(x: Tensor) -> Tensor:
        signal, weight = x[..., -5].double().numpy(), x[..., -3].double().numpy()
        target = best.target(signal, weight)
        # A full action buys for all of the equity; what fees make of it is the venue's to cut.
        return torch.as_tensor(np.where(target > weight, 1.0, np.where(target < weight, -1.0, 0.0))).unsqueeze(-1)

    return decide
