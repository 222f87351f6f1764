"""Networks of action values: Q(s, a) for Box actions, and Q(s, .) of all of a Discrete's choices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from drl_agents.networks.policy import ActorCritic
from drl_agents.networks.population import MLP, member_generators
from drl_agents.networks.spec import PolicySpec


class ActionValue(nn.Module):
    """C independent estimates of Q(s, a) for each of P members, MLPs over the normalised observation beside the action.

    Parameters have a leading axis of P * C, the estimates of a member side by side.

    Args:
        n_critics: C, 2 for the smaller of two (Fujimoto et al., "Addressing Function Approximation Error", ICML 2018).
        seeds: one per member.
    """

    def __init__(self, spec: PolicySpec, n_critics: int, seeds: Sequence[int]) -> None:
        super().__init__()
        self.n_critics = n_critics
        sizes = (spec.size + spec.action_size, *spec.hidden, 1)
        generators = [g for g in member_generators(seeds, stream=3) for _ in range(n_critics)]
        self.net = MLP(len(generators), sizes, spec.activation, 1.0, generators, spec.layer_norm)

    def forward(self, x: Tensor, action: Tensor) -> Tensor:
        """x (P, n, D) normalised dense observations, action (P, n, A) -> (P, C, n)."""
        joined = torch.cat([x, action], dim=-1)
        if self.n_critics > 1:
            joined = joined.repeat_interleave(self.n_critics, 0)
        return self.net(joined).view(x.shape[0], self.n_critics, x.shape[1])


class ActorHead(nn.Module):
    """The actor of a policy as a module of its own: windows (P, n, L * R) or None, state (P, n, K) -> (P, n, head)."""

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, windows: Tensor | None, state: Tensor) -> Tensor:
        return self.policy.outputs(windows, state, self.policy.actor)[0]


class Dueling(nn.Module):
    """Q(s, a) = V(s) + A(s, a) - mean_b A(s, b) (Wang et al., "Dueling Network Architectures", ICML 2016, eq. 9).

    The policy's actor is A, whose largest choice is also Q's, its critic is V: the policy alone plays what Q prefers.
    """

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, windows: Tensor | None, state: Tensor) -> Tensor:
        """Normalised windows (P, n, L * R) or None, states (P, n, K) -> (P, n, choices)."""
        advantage, value = self.policy.outputs(windows, state)
        return value + advantage - advantage.mean(-1, keepdim=True)
