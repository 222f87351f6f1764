"""A composite score of one trained model: a display. What selects models is the study's objective, not this.

    score = 0.4 R W + 0.2 reward + 0.2 explained variance + 0.1 entropy ratio - 0.1 unrest          (each in percent)

    R W                   mean return of the held-out window's stretches, times the share of them that gained
    reward                100 tanh(s / 2), s the annualised ratio of mean to standard deviation of the bars' rewards
    explained variance    of the critic, 100 (1 - Var(returns - values) / Var(returns)), not below -100
    entropy ratio         100 exp(H - H0), at most 100: the actions' perplexity over that of the untrained policy
    unrest                mean of how far KL divergence and clip fraction lie above what is usual, 0 to 100 each:
                          100 min(1, max(0, x / usual - 1)), usual 0.02 nats and 0.2

A part that an agent does not have (no entropy, no critic) is undefined: it is shown as such and adds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from environments.errors import InputError

USUAL_KL, USUAL_CLIP_FRACTION = 0.02, 0.2
GREEN, RED = 20.0, 0.0  # above the one a score is shown green, below the other red


@dataclass(frozen=True)
class Part:
    """One term. value: in percent, NaN where undefined; weight: its signed share."""

    name: str
    value: float
    weight: float

    @property
    def points(self) -> float:
        """What it adds to the score; 0 where it is undefined."""
        return 0.0 if math.isnan(self.value) else self.weight * self.value


@dataclass(frozen=True)
class Score:
    """All parts, in the formula's order."""

    parts: tuple[Part, ...]

    @property
    def total(self) -> float:
        return sum(part.points for part in self.parts)

    @property
    def colour(self) -> str:
        """ "green" above +20, "red" below 0, "yellow" between."""
        return "green" if self.total > GREEN else "red" if self.total < RED else "yellow"

    def to_dict(self) -> dict[str, object]:
        parts = {p.name: {"value": None if math.isnan(p.value) else p.value, "points": p.points} for p in self.parts}
        return {"score": self.total, "unit": "percent", "parts": parts}


def stretch_returns(equity: Sequence[float], n: int = 20) -> np.ndarray:
    """Returns (n,) of a window cut into n stretches of as equal length as its bars allow; fewer if it is shorter.

    Args:
        equity: (T + 1,) at the closes of T bars and before the first.
    """
    equity = np.asarray(equity, dtype=np.float64)
    if equity.size < 2:
        raise InputError(f"equity of {equity.size} bars: at least 2 are needed")
    edges = np.unique(np.linspace(0, equity.size - 1, min(n, equity.size - 1) + 1).round().astype(int))
    return equity[edges[1:]] / equity[edges[:-1]] - 1


def composite_score(
    returns: Sequence[float],
    rewards: Sequence[float],
    bars_per_year: float,
    explained_variance: float = math.nan,
    entropy: float = math.nan,
    first_entropy: float = math.nan,
    approx_kl: float = math.nan,
    clip_fraction: float = math.nan,
) -> Score:
    """The score of the module's formula.

    Args:
        returns: of the held-out window's stretches, as fractions.
        rewards: of its bars, such as their log returns.
        explained_variance, entropy, approx_kl, clip_fraction: of the last update; first_entropy: of the first.
            Differential entropies may be negative, so their exponentials are compared: the volume that actions fill.
    """
    returns, rewards = np.asarray(returns, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    gained = 100 * returns.mean() * (returns > 0).mean() if returns.size else math.nan
    spread = rewards.std(ddof=1) if rewards.size > 1 else 0.0
    steady = math.nan
    if spread > 0:
        steady = 100 * math.tanh(rewards.mean() / spread * math.sqrt(bars_per_year) / 2)
    variance = max(-100.0, 100 * explained_variance) if not math.isnan(explained_variance) else math.nan
    ratio = (
        100 * min(1.0, math.exp(min(0.0, entropy - first_entropy)))
        if math.isfinite(entropy - first_entropy)
        else math.nan
    )
    unrest = [_above(approx_kl, USUAL_KL), _above(clip_fraction, USUAL_CLIP_FRACTION)]
    known = [value for value in unrest if not math.isnan(value)]
    return Score(
        (
            Part("average return x win rate", gained, 0.4),
            Part("normalised reward", steady, 0.2),
            Part("explained variance", variance, 0.2),
            Part("entropy ratio", ratio, 0.1),
            Part("KL and clip fraction above usual", sum(known) / len(known) if known else math.nan, -0.1),
        )
    )


def _above(value: float, usual: float) -> float:
    return math.nan if math.isnan(value) else 100 * min(1.0, max(0.0, value / usual - 1))
