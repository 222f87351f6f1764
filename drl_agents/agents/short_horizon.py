"""What a short window of a differentiable environment comes to, and how its actions are kept in their bounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def discounts(done: Tensor, gamma: Tensor | float) -> Tensor:
    """(T, N) gamma^k, k the steps since the window or the episode began; done: (T, N) bool, the step ended one."""
    steps = torch.arange(done.shape[0], device=done.device).unsqueeze(1)
    first = torch.where(done, steps + 1, 0).cummax(0).values.roll(1, 0)
    first[0] = 0
    return torch.as_tensor(gamma, device=done.device) ** (steps - first)


def window_objective(reward: Tensor, cut: Tensor, cut_value: Tensor, done: Tensor, gamma: Tensor | float) -> Tensor:
    """(N,) what each environment's window comes to, per step: the mean over t of

        gamma^k_t (r_t + gamma cut_t V'(s'_t))        k_t: see `discounts`

    (the policy's loss of Xu et al., 2022; every episode within the window counts from its own first step.)

    Args:
        reward: (T, N). cut: (T, N) bool, the graph ends after the step with the episode going on beyond it: it was
            truncated, or the window ends. cut_value: (T, N) the target critic's V'(s'_t) there, 0 elsewhere.
        done: (T, N) bool. gamma: a number or (N,).
    """
    return (discounts(done, gamma) * (reward + gamma * cut_value * cut)).mean(0)


class InwardClamp(torch.autograd.Function):
    """x within [-1, 1]. Outside, a gradient that would bring x back is let through, one that leads further out is not:
    an action that cannot grow must still be able to fall."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        # Descent moves x against its gradient.
        outward = ((x > 1) & (grad < 0)) | ((x < -1) & (grad > 0))
        return grad.masked_fill(outward, 0.0)
