"""RMSprop over one flat vector per member; `FlatAdam`'s door."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from drl_agents.networks.population import FlatParameters


class FlatRMSprop:
    """RMSprop (Tieleman & Hinton, 2012) of P members at once; each has its own learning rate and norm limit.

        v = b v + (1 - b) g^2      x = x - lr * g / (sqrt(v) + eps)

    A member with a gradient that is not finite is left as it is.
    """

    def __init__(self, parameters: FlatParameters, decay: float = 0.99, eps: float = 1e-5) -> None:
        self.parameters, self.decay, self.eps = parameters, decay, eps
        self.square = torch.zeros_like(parameters.values)

    @torch.no_grad()
    def step(self, grad: Tensor, learning_rate: Tensor, max_grad_norm: Tensor, active: Tensor) -> Tensor:
        """One update; arguments and result as of `FlatAdam.step`."""
        norm = grad.norm(dim=1, keepdim=True)
        go = active & norm.isfinite()
        grad = torch.where(go, grad * (max_grad_norm / (norm + 1e-6)).clamp(max=1.0), 0.0)
        self.square.mul_(torch.where(go, self.decay, 1.0)).addcmul_(grad, grad, value=1 - self.decay)
        rate = torch.where(go, learning_rate, 0.0)
        self.parameters.values.sub_(rate * grad / (self.square.sqrt() + self.eps))
        return norm

    def state_dict(self) -> dict[str, Any]:
        return {"square": self.square.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.square.copy_(state["square"])
