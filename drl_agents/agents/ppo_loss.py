"""What PPO minimises, as pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

PARTS = (
    "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm", "skipped_updates",
)  # fmt: skip


def ppo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    entropy: Tensor,
    value: Tensor,
    advantage: Tensor,
    returns: Tensor,
    clip_coef: Tensor | float,
    ent_coef: Tensor | float,
    vf_coef: Tensor | float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped surrogate loss of each member (Schulman et al., 2017, eq. 7 and 9), to be minimised.

        r = exp(log_prob - old_log_prob)
        loss = mean[ -min(r A, clip(r, 1 - c, 1 + c) A) + vf_coef (V - R)^2 / 2 - ent_coef H ]

    Args:
        log_prob, ..., returns: (P, n), the mean is over n.
        clip_coef, ent_coef, vf_coef: numbers or (P, 1).

    Returns:
        the loss (P,) and its parts (P,): policy_loss, value_loss, entropy, approx_kl (Schulman's estimator
        mean[(r - 1) - ln r], http://joschu.net/blog/kl-approx.html), clip_fraction.
    """
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = torch.minimum(torch.maximum(ratio, 1 - clip_coef + 0 * ratio), 1 + clip_coef + 0 * ratio)
    policy_loss = -torch.minimum(ratio * advantage, clipped * advantage)
    value_loss = 0.5 * (value - returns).square()
    loss = (policy_loss + vf_coef * value_loss - ent_coef * entropy).mean(-1)
    with torch.no_grad():
        parts = {
            "policy_loss": policy_loss.mean(-1),
            "value_loss": value_loss.mean(-1),
            "entropy": entropy.mean(-1),
            "approx_kl": ((ratio - 1) - log_ratio).mean(-1),
            "clip_fraction": ((ratio - 1).abs() > clip_coef).float().mean(-1),
        }
    return loss, parts


def less_the_others(advantage: Tensor, each: int) -> Tensor:
    """(T, N) advantages less the mean of the other `each` - 1 of the same clock and step: (a - mean) * e / (e - 1)."""
    own = advantage.view(advantage.shape[0], -1, each)
    return ((own - own.mean(-1, keepdim=True)) * (each / (each - 1))).view_as(advantage)
