"""Deep deterministic policy gradient (Lillicrap et al., "Continuous Control with Deep Reinforcement Learning",
ICLR 2016), for P members at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drl_agents.agents.action_critics import AgentActionCritics, uniform_action
from drl_agents.agents.members import PerMember
from drl_agents.agents.off_policy import OffPolicyConfig
from drl_agents.networks.spec import PolicySpec
from drl_agents.rollout.replay import Batch


@dataclass(frozen=True)
class DDPGConfig(OffPolicyConfig):
    """learning_rate: of actor and critic. exploration_noise: deviation of what is added to actions while exploring.
    policy_frequency: gradient steps of the critic for each of the actor and of the target networks."""

    learning_rate: PerMember = 3e-4
    exploration_noise: PerMember = 0.1
    policy_frequency: int = 2

    RANGES = (
        *OffPolicyConfig.RANGES,
        ("learning_rate", 0.0, 1.0),
        ("exploration_noise", 0.0, 10.0),
        ("policy_frequency", 1, 1e6),
    )


class AgentDDPG(AgentActionCritics):
    """DDPG over Box actions: a deterministic actor a = tanh(f(s)), a critic, and targets that follow both.

    Args: see `AgentOffPolicy`.
    """

    name, n_critics, action_distribution = "ddpg", 1, "tanh"
    config_class: type[DDPGConfig] = DDPGConfig

    def __init__(
        self,
        spec: PolicySpec,
        config: DDPGConfig | None = None,
        seeds: Sequence[int] = (0,),
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(spec, config, seeds, device)
        self.add_target("actor_target", "actor")

    @property
    def period(self) -> int:
        return self.config.policy_frequency

    def act(self, market: Tensor | None, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        if self._random:
            action = uniform_action(noise)
        else:
            spread = self.hyper["exploration_noise"].unsqueeze(-1)
            action = (torch.tanh(self.head(market, state)) + spread * noise).clamp(-1, 1)
        return action, torch.zeros_like(action[..., 0])  # no density: nothing that learns from these asks for one

    def next_action(self, head: Tensor, noise: Tensor) -> Tensor:
        """The target actor's action (P, n, A), given its output, for the target of the critic."""
        return torch.tanh(head)

    def learn(
        self, batch: Batch, seen: Tensor | None, next_seen: Tensor | None, noise: Tensor, due: bool
    ) -> dict[str, Tensor]:
        """One step of the critics; every `policy_frequency`-th time one of the actor and of the targets.

        y = R + discount min_i Q'_i(s', a'),   a' = mu'(s')
        critic: mean_w[ sum_i (Q_i(s, a) - y)^2 ]         actor: mean[ -Q_1(s, mu(s)) ]
        """
        x, next_x = self.dense(seen, batch.state), self.dense(next_seen, batch.next_state)
        with self.precision(), torch.no_grad():
            views = self.views("actor_target")
            head = torch.func.functional_call(self.actor, views, (next_seen, batch.next_state))
            action = self.next_action(head, noise)
            goal = batch.reward + batch.discount * self.least_target_value(next_x, action)
        figures = self.fit_critics(x, batch, goal, self.hyper["learning_rate"])
        if due:
            views = self.views("actor", grad=True)
            with torch.enable_grad():
                with self.precision():
                    action = torch.tanh(torch.func.functional_call(self.actor, views, (seen, batch.state)))
                    worth = self.critic(x, action)[:, 0]
                actor_loss = -worth.mean(1)
                actor_norm = self.descend("actor", self.hyper["learning_rate"], actor_loss, views)
            self.follow("actor_target", "actor")
            self.follow("critic_target", "critic")
            figures |= {"actor_loss": actor_loss.detach(), "grad_norm": torch.maximum(figures["grad_norm"], actor_norm)}
        return {**figures, "skipped_updates": (~figures["grad_norm"].isfinite()).float()}
