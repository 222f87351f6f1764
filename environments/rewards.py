"""Reward terms: increments of one bar, never levels.

    log_return  log(E'/E)                       sums over an episode to log(final equity / first equity)
    excess      (E' - E) / E - (H' - H) / H     the account's return less the equal-weight holder's

E and E' are the equity at two successive closes, H and H' the value of the *equal-weight holder*: the one
who, when the episode began, put the same value into every asset that could be traded and kept it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from environments.errors import InputError

RewardTerm = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def log_return(before: Tensor, after: Tensor, held_before: Tensor, held_after: Tensor) -> Tensor:
    """(N,) log(after / before); ruin (after <= 0) counts as a loss of all but 1e-6."""
    return torch.log((after / before).clamp(min=1e-6))


def excess(before: Tensor, after: Tensor, held_before: Tensor, held_after: Tensor) -> Tensor:
    """(N,) simple return less the equal-weight holder's."""
    return (after - before) / before - (held_after - held_before) / held_before


REWARDS: dict[str, RewardTerm] = {"log_return": log_return, "excess": excess}


def reward_term(name: str) -> RewardTerm:
    """The reward term `name`; an unknown name is answered with the known ones."""
    if name not in REWARDS:
        raise InputError(f"reward {name!r}: accepted are {', '.join(REWARDS)}")
    return REWARDS[name]
