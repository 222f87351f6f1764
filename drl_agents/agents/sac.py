"""Soft actor-critic (Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018), for P members at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from drl_agents.agents.action_critics import AgentActionCritics, uniform_action
from drl_agents.agents.members import PerMember
from drl_agents.agents.off_policy import OffPolicyConfig
from drl_agents.networks.spec import PolicySpec
from drl_agents.rollout.replay import Batch


@dataclass(frozen=True)
class SACConfig(OffPolicyConfig):
    """policy_lr, q_lr: learning rates of the actor, and of the critics and the temperature. alpha: the temperature, the
    reward for a nat of entropy; with autotune where it begins, adapted until the entropy is -A, A the actions'
    components."""

    policy_lr: PerMember = 3e-4
    q_lr: PerMember = 1e-3
    alpha: PerMember = 0.2
    autotune: bool = True

    RANGES = (*OffPolicyConfig.RANGES, ("policy_lr", 0.0, 1.0), ("q_lr", 0.0, 1.0), ("alpha", 1e-9, 1e3))


class Temperature(nn.Module):
    """ln alpha (P, 1)."""

    def __init__(self, alpha: Tensor) -> None:
        super().__init__()
        self.log = nn.Parameter(alpha.log())


class AgentSAC(AgentActionCritics):
    """SAC over Box actions: a tanh-squashed Gaussian actor, two critics, a temperature that finds itself.

    Args: see `AgentOffPolicy`.
    """

    name, action_distribution, config_class = "sac", "squashed", SACConfig

    def __init__(
        self,
        spec: PolicySpec,
        config: SACConfig | None = None,
        seeds: Sequence[int] = (0,),
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(spec, config, seeds, device)
        self.temperature = Temperature(self.hyper["alpha"])
        self.add_learnt("temperature", self.temperature, self.n_members)

    @property
    def noise_size(self) -> int:
        return 2 * self.spec.action_size

    def act(self, market: Tensor | None, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        action, log_prob = self.distribution.sample(self.head(market, state), None, noise)
        return (uniform_action(noise) if self._random else action), log_prob

    def learn(
        self, batch: Batch, seen: Tensor | None, next_seen: Tensor | None, noise: Tensor, due: bool
    ) -> dict[str, Tensor]:
        """One step of critics, actor and temperature, and of the target critics.

        y      = R + discount (min_i Q'_i(s', a') - alpha ln p(a' | s')),   a' ~ p(. | s')
        critic: mean_w[ sum_i (Q_i(s, a) - y)^2 ]         actor: mean[ alpha ln p(a | s) - min_i Q_i(s, a) ]
        temperature: mean[ -alpha (ln p(a | s) + H) ],  H = -A        (eq. 5, 7 and 18)
        """
        next_noise, noise = noise.split(self.spec.action_size, dim=-1)
        x, next_x = self.dense(seen, batch.state), self.dense(next_seen, batch.next_state)
        alpha = self.temperature.log.exp()
        with self.precision(), torch.no_grad():
            action, log_prob = self.distribution.sample(self.actor(next_seen, batch.next_state), None, next_noise)
            later = self.least_target_value(next_x, action) - alpha * log_prob
            goal = batch.reward + batch.discount * later
        figures = self.fit_critics(x, batch, goal, self.hyper["q_lr"])
        views = self.views("actor", grad=True)
        with torch.enable_grad():
            with self.precision():
                head = torch.func.functional_call(self.actor, views, (seen, batch.state))
                action, log_prob = self.distribution.sample(head, None, noise)
                least = self.critic(x, action).amin(1)
            actor_loss = (alpha * log_prob - least).mean(1)
            actor_norm = self.descend("actor", self.hyper["policy_lr"], actor_loss, views)
        entropy = -log_prob.detach().mean(1)
        if self.config.autotune:
            views = self.views("temperature", grad=True)
            with torch.enable_grad():
                target = -self.spec.action_size
                loss = (-views["log"].exp() * (target - entropy).unsqueeze(1)).sum(1)
                self.descend("temperature", self.hyper["q_lr"], loss, views)
        self.follow("critic_target", "critic")
        norms = torch.stack([figures["grad_norm"], actor_norm])
        return {
            **figures,
            "actor_loss": actor_loss.detach(),
            "entropy": entropy,
            "alpha": alpha.squeeze(1),
            "grad_norm": norms.amax(0),
            "skipped_updates": (~norms.isfinite()).any(0).float(),
        }
