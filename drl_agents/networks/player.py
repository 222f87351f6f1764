"""Player: a policy as it is judged and deployed, deciding bar after bar."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


class Player:
    """Dense observations (P, n, D) -> actions (P, n, ...), one call for each bar of the same n accounts.

    A policy that remembers finds its memory of the calls before; others have none.

    Args:
        policy: `ActorCritic`. precision: makes the context that matrix products run in.

    Attributes:
        memory: (P, n, M) of the calls so far, None before the first and where there is none. To go on elsewhere where
            another player stopped, give it that one's.
    """

    def __init__(self, policy: nn.Module, precision: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.policy, self.precision = policy, precision
        self.memory: Tensor | None = None

    def begin(self) -> Player:
        """One of the same policy that has seen nothing yet."""
        return Player(self.policy, self.precision)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        with self.precision():
            if not self.policy.memory_size:
                return self.policy.mode(x)
            if self.memory is None:
                self.memory = self.policy.initial_memory(x.shape[1])
            action, self.memory = self.policy.play(x, self.memory)
            return action
