"""Returns and advantages: pure functions, time-major."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    reward: Tensor, value: Tensor, next_value: Tensor, done: Tensor, gamma: Tensor | float, gae_lambda: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., 2016, eq. 16) with separate ends of episodes.

        delta_t = r_t + gamma * v'_t - v_t
        A_t     = delta_t + gamma * lambda * (1 - done_t) * A_{t+1},   A_T = 0

    Args:
        reward, value: (T, ...).
        next_value: (T, ...) v'_t, the value of the true successor of step t: 0 where the episode terminated, the
            final observation's where it was truncated, the next observation's elsewhere.
        done: (T, ...) bool, terminated or truncated: nothing flows back across it.
        gamma, gae_lambda: numbers, or tensors that broadcast against one time step.

    Returns:
        (advantages, returns = advantages + values), each (T, ...).
    """
    delta = reward + gamma * next_value - value
    decay = gamma * gae_lambda * (~done).to(delta.dtype)
    advantage = torch.empty_like(delta)
    ahead = torch.zeros_like(delta[0])
    for t in range(delta.shape[0] - 1, -1, -1):
        ahead = torch.addcmul(delta[t], decay[t], ahead)
        advantage[t] = ahead
    return advantage, advantage + value


def explained_variance(value: Tensor, returns: Tensor, dim: int) -> Tensor:
    """1 - Var(returns - value) / Var(returns) along `dim`; 0 where the returns do not vary."""
    spread = returns.var(dim)
    return torch.where(spread > 1e-12, 1 - (returns - value).var(dim) / spread.clamp(min=1e-12), 0.0)
