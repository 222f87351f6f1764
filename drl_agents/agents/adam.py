"""Adam over one flat vector per member, with gradient clipping and no transfer to the host."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from drl_agents.networks.population import FlatParameters


class FlatAdam:
    """Adam (Kingma & Ba, 2015, algorithm 1) of P members at once; each has its own learning rate and norm limit.

        m = b1 m + (1 - b1) g      v = b2 v + (1 - b2) g^2
        x = x - lr * (m / (1 - b1^k)) / (sqrt(v / (1 - b2^k)) + eps)

    k counts a member's own steps. A member with a gradient that is not finite is left as it is.
    """

    def __init__(
        self, parameters: FlatParameters, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-5
    ) -> None:
        self.parameters, self.betas, self.eps = parameters, betas, eps
        self.first = torch.zeros_like(parameters.values)
        self.second = torch.zeros_like(parameters.values)
        self.count = torch.zeros(parameters.values.shape[0], 1, device=parameters.values.device)

    @torch.no_grad()
    def step(self, grad: Tensor, learning_rate: Tensor, max_grad_norm: Tensor, active: Tensor) -> Tensor:
        """One update.

        Args:
            grad: (P, D) gradients in the order of the flat parameters.
            learning_rate, max_grad_norm: (P, 1).
            active: (P, 1) bool, members that are updated.

        Returns:
            (P, 1) gradient norms before clipping.
        """
        b1, b2 = self.betas
        norm = grad.norm(dim=1, keepdim=True)
        go = active & norm.isfinite()
        # where, not a product: 0 * NaN is NaN.
        grad = torch.where(go, grad * (max_grad_norm / (norm + 1e-6)).clamp(max=1.0), 0.0)
        self.count.add_(go)
        keep1, keep2 = torch.where(go, b1, 1.0), torch.where(go, b2, 1.0)
        self.first.mul_(keep1).add_(grad, alpha=1 - b1)
        self.second.mul_(keep2).addcmul_(grad, grad, value=1 - b2)
        k = self.count.clamp(min=1)
        # 1 - b^k by expm1: in float32 the plain difference loses five digits of the first steps.
        rate = torch.where(go, learning_rate / -torch.expm1(k * math.log(b1)), 0.0)
        scale = (-torch.expm1(k * math.log(b2))).rsqrt()
        self.parameters.values.sub_(rate * self.first / (self.second.sqrt() * scale + self.eps))
        return norm

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first.clone(), "second": self.second.clone(), "count": self.count.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            getattr(self, name).copy_(value)


class LossScale:
    """Keeps float16 gradients away from zero and infinity: the loss of each member is multiplied, its gradient divided.

    scale: (P,). Halved when a gradient is not finite (that step is skipped), doubled after `growth_interval` steps
    without one (Micikevicius et al., "Mixed Precision Training", ICLR 2018).
    """

    growth_interval = 2_000

    def __init__(self, n_members: int, device: torch.device) -> None:
        self.scale = torch.full((n_members,), 2.0**14, device=device)
        self.sound = torch.zeros(n_members, device=device)

    @torch.no_grad()
    def unscale(self, grad: Tensor) -> Tensor:
        """(P, D) gradients of the loss itself; those that are not finite stay so."""
        finite = grad.isfinite().all(1)
        plain = grad / self.scale.unsqueeze(1)
        self.sound.copy_(torch.where(finite, self.sound + 1, 0.0))
        grown = self.sound >= self.growth_interval
        factor = torch.where(finite, torch.where(grown, 2.0, 1.0), 0.5)
        self.scale.copy_((self.scale * factor).clamp(1.0, 2.0**24))
        self.sound.masked_fill_(grown, 0.0)
        return plain

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale.clone(), "sound": self.sound.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scale.copy_(state["scale"])
        self.sound.copy_(state["sound"])
