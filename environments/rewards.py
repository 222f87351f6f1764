"""Rewards: a weighted sum of named terms, such as "log_return" or "excess:1,turnover:0.1,drawdown:0.5".

Each term is what one bar adds. E and E' are the equity at two successive closes, R = (E' - E) / E the return
between them, and s the scale: one over the standard deviation of the market's equal-weight one-bar return, so
that rewards are of order one in any market. Summed over an episode, a term comes to:

    log_return           s log(E'/E)                     s log(final equity / first equity)
    excess               s (R - (H' - H) / H)            s times the returns' sum, less the equal-weight holder's
    differential_sharpe  D (below)                       to first order, the gain of the moving Sharpe ratio / eta
    drawdown             -s (d' - d)                     -s times the drawdown at the end
    turnover             -(value traded) / E             -(how many times the equity was traded)
    concentration        -sum_i w_i^2                    -bars * mean Herfindahl index: a cost of every bar so held
    cvar                 -s (c' - c)                     -s times the CVaR of the last 100 bars at the end

H is the value of the *equal-weight holder*: the one who, when the episode began, put the same value into every
asset that could be traded and kept it. d = 1 - E / (highest E so far), w_i the weight of asset i at the new marks
(cash has none: all in cash is 0, all in one asset is 1). What a term remembers begins anew with the episode.
Penalties count against by themselves: weights are positive.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from environments.errors import InputError
from environments.market import Market

ETA = 0.01  # adaptation rate of the differential Sharpe ratio's moments, per bar
LEAST_VARIANCE = 0.01  # of the market's: the differential Sharpe ratio takes no variance for smaller
CVAR_WINDOW, CVAR_WORST = 100, 5  # bars looked back on, and how many of them are the tail: 5%


class Outcome(NamedTuple):
    """What one bar did to N accounts.

    before, after: (N,) equity at the two closes; held_before, held_after: (N,) the holder's value at them.
    traded: (N, A) value >= 0 of the fills between them. shares, mark: (N, A) held and last known close after it.
    """

    before: Tensor
    after: Tensor
    held_before: Tensor
    held_after: Tensor
    traded: Tensor
    shares: Tensor
    mark: Tensor


Memory = Sequence[Tensor]


@dataclass(frozen=True)
class RewardTerm:
    """One term. value: (outcome, memory, scale (N,)) -> its reward (N,) and the memory after it.

    memory: what it remembers of an episode, by name: the shape of one environment's, and the number it begins as.
    """

    value: Callable[[Outcome, Memory, Tensor], tuple[Tensor, Memory]]
    memory: dict[str, tuple[tuple[int, ...], float]] = field(default_factory=dict)


def log_return(before: Tensor, after: Tensor, held_before: Tensor, held_after: Tensor) -> Tensor:
    """(N,) log(after / before); ruin (after <= 0) counts as a loss of all but 1e-6."""
    return torch.log((after / before).clamp(min=1e-6))


def excess(before: Tensor, after: Tensor, held_before: Tensor, held_after: Tensor) -> Tensor:
    """(N,) simple return less the equal-weight holder's."""
    return (after - before) / before - (held_after - held_before) / held_before


def differential_sharpe(
    returns: Tensor, mean: Tensor, square: Tensor, eta: float = ETA
) -> tuple[Tensor, Tensor, Tensor]:
    """The differential Sharpe ratio and the moving moments after it, each (N,).

        D  = (B (R - A) - A (R^2 - B) / 2) / (B - A^2)^(3/2)
        A' = A + eta (R - A),  B' = B + eta (R^2 - B)

    D is the derivative by eta, at eta = 0, of the moving Sharpe ratio A' / sqrt(B' - A'^2) (Moody, Wu, Liao and
    Saffell, 1998, "Performance functions and reinforcement learning for trading systems and portfolios"; Moody and
    Saffell, 2001, "Learning to trade via direct reinforcement", eq. 15). D does not depend on the unit of R. A variance
    under `LEAST_VARIANCE` is taken for that, or an account that sat in cash would find any move immense.

    Args:
        returns: R in standard deviations of the market's one-bar return. mean, square: A and B.
    """
    variance = (square - mean.square()).clamp(min=LEAST_VARIANCE)
    value = (square * (returns - mean) - 0.5 * mean * (returns.square() - square)) / variance.pow(1.5)
    return value, mean + eta * (returns - mean), square + eta * (returns.square() - square)


def tail_loss(returns: Tensor, worst: int = CVAR_WORST) -> Tensor:
    """(N,) conditional value at risk of (N, W) returns: minus the mean of the `worst` lowest.

    With worst / W = 5% it is the empirical CVaR at 95% (Rockafellar and Uryasev, 2000).
    """
    return -torch.topk(returns, worst, dim=-1, largest=False).values.mean(-1)


def _plain(function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> RewardTerm:
    return RewardTerm(lambda o, memory, scale: (function(*o[:4]) * scale, ()))


def _differential_sharpe(o: Outcome, memory: Memory, scale: Tensor) -> tuple[Tensor, Memory]:
    value, *moments = differential_sharpe((o.after / o.before - 1) * scale, *memory)
    return value, moments


def _drawdown(o: Outcome, memory: Memory, scale: Tensor) -> tuple[Tensor, Memory]:
    peak = torch.maximum(memory[0], o.before)  # it begins as 0: the first equity is the first peak
    higher = torch.maximum(peak, o.after)
    return (o.after / higher - o.before / peak) * scale, (higher,)


def _turnover(o: Outcome, memory: Memory, scale: Tensor) -> tuple[Tensor, Memory]:
    return -o.traded.sum(-1) / o.before, ()


def _concentration(o: Outcome, memory: Memory, scale: Tensor) -> tuple[Tensor, Memory]:
    weights = o.shares * o.mark / o.after.clamp(min=1e-12).unsqueeze(-1)
    return -weights.square().sum(-1), ()


def _cvar(o: Outcome, memory: Memory, scale: Tensor) -> tuple[Tensor, Memory]:
    """The window begins full of zeros: before the episode the account was all in cash."""
    returns, loss = memory
    window = torch.cat([returns[:, 1:], (o.after / o.before - 1).unsqueeze(-1)], dim=-1)
    now = tail_loss(window)
    return (loss - now) * scale, (window, now)


REWARDS: dict[str, RewardTerm] = {
    "log_return": _plain(log_return),
    "excess": _plain(excess),
    # Before the episode the account is taken to have earned nothing, with the market's own variance.
    "differential_sharpe": RewardTerm(_differential_sharpe, {"mean": ((), 0.0), "square": ((), 1.0)}),
    "drawdown": RewardTerm(_drawdown, {"peak": ((), 0.0)}),
    "turnover": RewardTerm(_turnover),
    "concentration": RewardTerm(_concentration),
    "cvar": RewardTerm(_cvar, {"returns": ((CVAR_WINDOW,), 0.0), "loss": ((), 0.0)}),
}


def reward_term(name: str) -> RewardTerm:
    """The reward term `name`; an unknown name is answered with the known ones."""
    if name not in REWARDS:
        raise InputError(f"reward {name!r}: accepted are {', '.join(REWARDS)}")
    return REWARDS[name]


@dataclass(frozen=True)
class Reward:
    """sum_i weights_i * terms_i. names, weights, terms: one of each per term.

    In a population a weight may be a tensor (N,) in place of a number, see `each_members`.
    """

    names: tuple[str, ...]
    weights: tuple[float | Tensor, ...]
    terms: tuple[RewardTerm, ...]

    @classmethod
    def each_members(cls, own: Sequence[Reward], each: int, dtype: torch.dtype, device: torch.device) -> Reward:
        """The reward of P * each environments, `each` in succession with that of one of `own`.

        Weights in which the members agree stay numbers, the others are tensors (P * each,).

        Raises:
            InputError: the members' terms, or their order, differ.
        """
        if others := [reward.names for reward in own if reward.names != own[0].names]:
            raise InputError(
                f"rewards of one population: {', '.join(others[0])} beside {', '.join(own[0].names)}; "
                f"accepted are the same terms in the same order, with any weights"
            )
        columns = list(zip(*(reward.weights for reward in own), strict=True))
        weights = [
            torch.tensor(values, dtype=dtype, device=device).repeat_interleave(each)
            if len(set(values)) > 1
            else values[0]
            for values in columns
        ]
        return cls(own[0].names, tuple(weights), own[0].terms)

    @cached_property
    def memory(self) -> dict[str, tuple[tuple[int, ...], float]]:
        """What the terms remember, in their order: {"term.name": (shape of one environment's, first value)}."""
        terms = zip(self.names, self.terms, strict=True)
        return {f"{own}.{name}": kept for own, term in terms for name, kept in term.memory.items()}

    def __call__(self, outcome: Outcome, memory: Memory, scale: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Rewards (N,) of one bar, and the memory after it.

        Args:
            memory: (N, ...) tensors in the order of `self.memory`. scale: (N,), see above.
        """
        total, after, first = None, [], 0
        for weight, term in zip(self.weights, self.terms, strict=True):
            last = first + len(term.memory)
            value, kept = term.value(outcome, memory[first:last], scale)
            after += kept
            first = last
            value = weight * value if isinstance(weight, Tensor) or weight != 1 else value
            total = value if total is None else total + value
        return total, after


def parse_reward(text: str) -> Reward:
    """The reward "term", or "term:weight,term:weight": terms separated by commas or blanks, weights > 0, 1 if left out.

    Raises:
        InputError: an unknown term (the known ones are listed), one named twice, a weight that is no positive number.
    """
    weights: dict[str, float] = {}
    for part in re.split(r"[,\s]+", text.strip()):
        name, colon, number = part.partition(":")
        reward_term(name)
        if name in weights:
            raise InputError(f"reward {text!r}: {name} is named twice, give it one weight")
        try:
            weights[name] = float(number) if colon else 1.0
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] < math.inf:
            raise InputError(f"reward {text!r}: the weight of {name} is {number!r}, accepted are numbers > 0")
    return Reward(tuple(weights), tuple(weights.values()), tuple(REWARDS[name] for name in weights))


def reward_scale(market: Market, member_segments: Sequence[Sequence[tuple[int, int]]]) -> Tensor:
    """(P,) one over the standard deviation of the equal-weight one-bar return in each member's segments."""
    mark = market.mark
    known = (mark[:-1] > 0) & (mark[1:] > 0)
    change = torch.where(known, mark[1:] / mark[:-1].clamp(min=1e-30) - 1, 0.0)
    mean = change.sum(1) / known.sum(1).clamp(min=1)
    spreads = [torch.cat([mean[a : b - 1] for a, b in own]).std() for own in member_segments]
    spread = torch.stack(spreads)
    return torch.where(spread > 0, 1 / spread, 1.0)
