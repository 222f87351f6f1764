"""A market whose best policy is known: an AR(1) signal leads returns and trading costs are linear.

    s[t+1] = rho s[t] + sqrt(1 - rho^2) eps          E[R[t+1] | s[t]] = exp(sigma ic s[t] - (sigma ic)^2 / 2) - 1

R is the simple return of the next bar, which an order decided on s[t] captures whole; without the signal it is 0 on
average, so that neither cash nor holding earns anything. A position w in [0, 1] moved to w' costs c |w' - w|.
Value iteration gives the best policy of one asset. Without costs it holds, of however many assets, the one whose next
return is expected to be largest, or none where all are below 0: see `best_without_costs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
    """ic: correlation of the signal with the next return. cost_bps: of traded value. rho: of the signal per bar.
    n_assets: each with a signal of its own. delay: bars ago the signal was shown that leads the next return; with rho 0
    what was shown since says nothing, and who saw no more than the last bar knows nothing."""

    ic: float
    cost_bps: float
    rho: float = 0.9
    sigma: float = 0.01
    n_assets: int = 1
    delay: int = 0

    def expected_return(self, signal: Any) -> Any:
        """E[R | s], see above."""
        return np.expm1(self.sigma * self.ic * signal - (self.sigma * self.ic) ** 2 / 2)

    def market(self, n_bars: int, seed: int) -> Market:
        """Hourly bars of the coins."""
        drift = -(self.sigma**2) / 2 * MINUTES_PER_YEAR / 60
        kind = {"kind": "signal", "sigma": self.sigma, "ic": self.ic, "rho": self.rho, "drift": drift}
        size = {"n_assets": self.n_assets, "n_bars": n_bars + self.delay}
        bars = load_bars("synthetic", options={**kind, **size}, seed=seed)
        if self.delay:  # shown so many bars before it leads
            shown = bars.frame.groupby("symbol")["signal"].shift(-self.delay)
            bars = replace(bars, frame=bars.frame.assign(signal=shown).dropna())
        return Market.from_bars(bars)

    def expected_returns(self, market: Market) -> Tensor:
        """(B, A) E[R] of each next bar; NaN of the first `delay` bars."""
        signal = market.extra[..., market.extra_names.index("signal")].numpy()
        unknown = np.full_like(signal[: self.delay], np.nan)
        return torch.as_tensor(self.expected_return(np.concatenate([unknown, signal[: len(signal) - self.delay]])))

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
    planted: Planted,
    market: Market,
    window: tuple[int, int],
    n_walks: int,
    n_members: int,
    action: str = "trades",
    lookback: int = 1,
) -> MarketVecEnv:
    """`n_walks` accounts for each member, each walking its part of the window."""
    edges = np.linspace(*window, n_walks + 1).astype(int)  # all but as long as one another
    parts = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    return MarketVecEnv(
        market, n_walks * n_members, n_members=n_members, segments=parts, random_start=False, episode_length=None,
        lookback=lookback, **planted.env_options(action),
    )  # fmt: skip


@torch.no_grad()
def gains(planted: Planted, env: MarketVecEnv, decide: Callable[[Tensor], Tensor]) -> Tensor:
    """(P,) mean per bar of the sum over assets of w' E[R | s], less fees / equity, over the walks of each member: what
    the policy earns, with the chance of the bars themselves averaged out.

    Args:
        env: of `walking`. decide: dense observations (P, n, D) -> actions (P, n, .).
    """
    expected = planted.expected_returns(env.market)
    observation, p = env.reset(), env.n_members
    steps = _walked(env)
    total = torch.zeros(env.n_envs, dtype=torch.float64)
    for _ in range(steps):
        bar, before = env.bar.clone(), env.equity.clone()
        dense = build_observation(env.rows, observation, env.lookback).view(p, env.n_envs // p, -1)
        observation = env.step(decide(dense).flatten(0, 1)).observation
        held = env.last_shares * env.market.open[bar + 1] / before.unsqueeze(1)
        total += (held * expected[bar]).sum(1) - env.fees / before
    return total.view(p, -1).mean(1) / steps


def best_without_costs(planted: Planted, env: MarketVecEnv) -> float:
    """The most that `gains` can be where trading is free: the mean over the walks' bars of max(0, max_a E[R_a]).

    What is held does not bear on what can be held next, so the best policy is the best choice of every bar.
    """
    env.reset()
    bars = env.bar.unsqueeze(1) + torch.arange(_walked(env))
    return planted.expected_returns(env.market)[bars].amax(-1).clamp(min=0).mean().item()


def _walked(env: MarketVecEnv) -> int:
    """Steps of the shortest walk, from its first bar."""
    return int((env.stop - env.bar).min()) - 1


def best_decision(best: Optimum) -> Callable[[Tensor], Tensor]:
    """`optimum` as a policy over the environment's observations (..., signal, cash share, weight, profit, idle)."""

    def decide(x: Tensor) -> Tensor:
        signal, weight = x[..., -5].double().numpy(), x[..., -3].double().numpy()
        target = best.target(signal, weight)
        # A full action buys for all of the equity; what fees make of it is the venue's to cut.
        return torch.as_tensor(np.where(target > weight, 1.0, np.where(target < weight, -1.0, 0.0))).unsqueeze(-1)

    return decide
