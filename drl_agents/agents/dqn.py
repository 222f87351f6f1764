"""Deep Q-learning (Mnih et al., 2015), double (van Hasselt et al., 2016) and duelling (Wang et al., 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drl_agents.agents.members import PerMember
from drl_agents.agents.off_policy import AgentOffPolicy, OffPolicyConfig
from drl_agents.networks.action_value import Dueling
from drl_agents.networks.spec import PolicySpec
from drl_agents.rollout.buffer import Rollout
from drl_agents.rollout.replay import Batch
from environments.errors import InputError
from environments.vec_env import VecEnv


@dataclass(frozen=True)
class DQNConfig(OffPolicyConfig):
    """start_e, end_e: the share of random actions falls from the one to the other, linearly over the first
    exploration_fraction of training. target_network_frequency: gradient steps between those at which the target network
    follows. update_to_data is 1 / CleanRL's train_frequency."""

    horizon_len: int = 10
    buffer_size: int = 10_000
    batch_size: int = 128
    update_to_data: float = 0.1
    tau: PerMember = 1.0
    max_grad_norm: PerMember | None = 10.0
    learning_rate: PerMember = 2.5e-4
    start_e: PerMember = 1.0
    end_e: PerMember = 0.05
    exploration_fraction: float = 0.5
    target_network_frequency: int = 50

    RANGES = (
        *OffPolicyConfig.RANGES,
        ("learning_rate", 0.0, 1.0),
        ("start_e", 0.0, 1.0),
        ("end_e", 0.0, 1.0),
        ("exploration_fraction", 1e-9, 1.0),
        ("target_network_frequency", 1, 1e9),
    )


class AgentDQN(AgentOffPolicy):
    """DQN over Discrete actions. The policy's actor is the advantage and its critic the value of a duelling network.

    Args: see `AgentOffPolicy`.
    """

    def __init__(
        self,
        spec: PolicySpec,
        config: DQNConfig | None = None,
        seeds: Sequence[int] = (0,),
        device: torch.device | str = "cpu",
    ) -> None:
        if spec.action != "discrete":
            raise InputError("agent dqn plays Discrete actions, not a Box: accepted are ppo, shac, a2c, sac, td3, ddpg")
        super().__init__(spec, config or DQNConfig(), seeds, device)
        self.network = Dueling(self.policy)
        self.add_learnt("network", self.network, self.n_members)
        self.add_target("target", "network")
        self.epsilon = self.hyper["start_e"].clone()

    @property
    def period(self) -> int:
        return self.config.target_network_frequency

    def explore_vec_env(self, env: VecEnv, horizon_len: int) -> Rollout:
        self.set_epsilon()
        return super().explore_vec_env(env, horizon_len)

    def set_epsilon(self) -> None:
        """The share of random actions (P, 1) of the next rollout, by how far training has come."""
        share = min(1.0, self.progress / self.config.exploration_fraction)
        start, end = self.hyper["start_e"], self.hyper["end_e"]
        random = self.timesteps < self.config.learning_starts
        self.epsilon.copy_(torch.ones_like(start) if random else start + share * (end - start))

    def act(self, market: Tensor | None, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Epsilon-greedy.

        The noise is Gumbel's: which of its n components is largest is uniform, and independent of how large it is, so
        one draw says both whether to explore, exp(-n exp(-max)) < epsilon, and what to do then.
        """
        largest, random = noise.max(-1)
        explores = torch.exp(-self.spec.action_size * torch.exp(-largest)) < self.epsilon
        action = torch.where(explores, random, self.best(market, state))
        return action, torch.zeros_like(largest)

    def learn(
        self, batch: Batch, seen: Tensor | None, next_seen: Tensor | None, noise: Tensor, due: bool
    ) -> dict[str, Tensor]:
        """One gradient step.

        y = R + discount Q'(s', argmax_b Q(s', b)),   loss = mean_w[ (Q(s, a) - y)^2 ]
        """
        with self.precision(), torch.no_grad():
            choice = self.network(next_seen, batch.next_state).argmax(-1, keepdim=True)
            views = self.views("target")
            later = torch.func.functional_call(self.network, views, (next_seen, batch.next_state))
            goal = batch.reward + batch.discount * later.gather(-1, choice).squeeze(-1)
        views = self.views("network", grad=True)
        with torch.enable_grad():
            with self.precision():
                values = torch.func.functional_call(self.network, views, (seen, batch.state))
            value = values.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
            error = value - goal
            qf_loss = (batch.weight * error.square()).mean(1)
            norm = self.descend("network", self.hyper["learning_rate"], qf_loss, views)
        if due:
            self.follow("target", "network")
        return {
            "qf_loss": qf_loss.detach(),
            "q_value": value.detach().mean(1),
            "grad_norm": norm,
            "skipped_updates": (~norm.isfinite()).float(),
            "error": error.detach(),
        }
