"""AgentActionCritics: what DDPG, TD3 and SAC share, an actor of Box actions and critics of what an action is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from drl_agents.agents.off_policy import AgentOffPolicy, OffPolicyConfig
from drl_agents.networks.action_value import ActionValue, ActorHead
from drl_agents.networks.spec import PolicySpec
from drl_agents.rollout.replay import Batch
from environments.errors import InputError


class AgentActionCritics(AgentOffPolicy):
    """An off-policy agent with an actor, critics Q_i(s, a) and a target of the critics.

    A subclass names itself, its critics' number, the distribution of its actions and its config.

    Args: see `AgentOffPolicy`.

    Raises:
        InputError: the actions are not of a Box.
    """

    name: str
    n_critics = 2
    action_distribution: str
    config_class: type[OffPolicyConfig]

    def __init__(
        self,
        spec: PolicySpec,
        config: OffPolicyConfig | None = None,
        seeds: Sequence[int] = (0,),
        device: torch.device | str = "cpu",
    ) -> None:
        if spec.action != "box":
            raise InputError(
                f"agent {self.name} plays Box actions, not {spec.action_space}: accepted are ppo, a2c, dqn"
            )
        spec = replace(spec, distribution=self.action_distribution, value=False)
        super().__init__(spec, config or self.config_class(), seeds, device)
        self.actor = ActorHead(self.policy)
        self.critic = ActionValue(spec, self.n_critics, seeds).to(self.device)
        self.add_learnt("actor", self.actor, self.n_members)
        self.add_learnt("critic", self.critic, self.n_critics * self.n_members)
        self.add_target("critic_target", "critic")

    def least_target_value(self, x: Tensor, action: Tensor) -> Tensor:
        """(P, n) min_i Q'_i(s, a) of dense observations (P, n, D) and actions (P, n, A)."""
        return torch.func.functional_call(self.critic, self.views("critic_target"), (x, action)).amin(1)

    def fit_critics(self, x: Tensor, batch: Batch, goal: Tensor, learning_rate: Tensor) -> dict[str, Tensor]:
        """One step of the critics on mean_w[ sum_i (Q_i(s, a) - y)^2 ]. Returns the figures of `learn` that it knows.

        Args:
            x: (P, n, D) dense observations s. goal: (P, n) y. learning_rate: (P, 1).
        """
        views = self.views("critic", grad=True)
        with torch.enable_grad():
            with self.precision():
                value = torch.func.functional_call(self.critic, views, (x, batch.action))
            error = value - goal.unsqueeze(1)
            qf_loss = (batch.weight * error.square().sum(1)).mean(1)
            norm = self.descend("critic", learning_rate, qf_loss, views)
        return {
            "qf_loss": qf_loss.detach(),
            "q_value": value.detach().mean((1, 2)),
            "grad_norm": norm,
            "error": error.detach().abs().mean(1),
        }


def uniform_action(noise: Tensor) -> Tensor:
    """Standard normal noise as uniform in [-1, 1]: 2 Phi(z) - 1."""
    return 2 * torch.special.ndtr(noise) - 1
