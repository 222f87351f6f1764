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
    advantage = reverse_scan(delta, decay)
    return advantage, advantage + value


def reverse_scan(x: Tensor, decay: Tensor) -> Tensor:
    """y_t = x_t + decay_t * y_{t+1} with y_T = 0, along the first axis of T steps.

    By doubling (Hillis and Steele, 1986): ceil(log2 T) passes over whole tensors instead of T steps one after another.
    """
    x, decay = x.clone(), decay.clone()
    span = 1
    while span < x.shape[0]:
        # What is read lies ahead of what is written, and the sum is made before it is stored.
        x[:-span] += decay[:-span] * x[span:]
        decay[:-span] *= decay[span:].clone()
        decay[-span:].zero_()
        span *= 2
    return x


def explained_variance(value: Tensor, returns: Tensor, dim: int) -> Tensor:
    """1 - Var(returns - value) / Var(returns) along `dim`; 0 where the returns do not vary."""
    spread = returns.var(dim)
    return torch.where(spread > 1e-12, 1 - (returns - value).var(dim) / spread.clamp(min=1e-12), 0.0)
