"""Proximal policy optimisation (Schulman et al., 2017), for P members at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from drl_agents.agents.adam import FlatAdam
from drl_agents.agents.base import AgentBase
from drl_agents.networks.policy import ActorCritic, PolicySpec
from drl_agents.networks.population import FlatParameters, member_generators
from drl_agents.rollout.buffer import Rollout
from drl_agents.rollout.returns import explained_variance, gae
from environments.errors import InputError

PerMember = float | Sequence[float]


@dataclass(frozen=True)
class PPOConfig:
    """Hyper-parameters, named as CleanRL names them. Those typed `PerMember` may differ between members.

    horizon_len: T, steps of each environment per rollout. target_kl: mean KL divergence of an epoch after which the
    member's update ends (None: never). reward_scale: factor on every reward. anneal_lr: the learning rate
    falls linearly to 0 over training.
    """

    horizon_len: int = 128
    num_minibatches: int = 4
    update_epochs: int = 4
    norm_adv: bool = True
    anneal_lr: bool = False
    learning_rate: PerMember = 3e-4
    gamma: PerMember = 0.99
    gae_lambda: PerMember = 0.95
    clip_coef: PerMember = 0.2
    ent_coef: PerMember = 0.0
    vf_coef: PerMember = 0.5
    max_grad_norm: PerMember = 0.5
    target_kl: PerMember | None = None
    reward_scale: PerMember = 1.0

    def __post_init__(self) -> None:
        for name in ("horizon_len", "num_minibatches", "update_epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: at least 1 is needed")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is None:
                continue
            for one in [value] if isinstance(value, int | float) else value:
                if not low <= one <= high:
                    raise InputError(f"{name}={one}: accepted are {low} to {high}")


_RANGES = (
    ("learning_rate", 0.0, 1.0),
    ("gamma", 0.0, 1.0),
    ("gae_lambda", 0.0, 1.0),
    ("clip_coef", 1e-6, 10.0),
    ("ent_coef", 0.0, 10.0),
    ("vf_coef", 0.0, 100.0),
    ("max_grad_norm", 1e-6, 1e6),
    ("target_kl", 1e-6, 1e6),
    ("reward_scale", 1e-9, 1e9),
)


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


class AgentPPO(AgentBase):
    """PPO over Box and Discrete actions.

    Args:
        spec: the policy's shapes and network.
        config: hyper-parameters.
        seeds: one per member; a member depends on its own seed alone.
    """

    def __init__(
        self,
        spec: PolicySpec,
        config: PPOConfig | None = None,
        seeds: Sequence[int] = (0,),
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(seeds, torch.device(device))
        self.spec, self.config = spec, config or PPOConfig()
        self.policy = ActorCritic(spec, seeds).to(self.device)
        self.distribution = self.policy.distribution
        self.parameters = FlatParameters(self.policy, self.n_members)
        self.optimizer = FlatAdam(self.parameters)
        self.shuffle_generators = list(member_generators(seeds, stream=2))
        names = [item.name for item in fields(PPOConfig) if "PerMember" in str(item.type)]
        self.hyper = {name: self._column(name, getattr(self.config, name)) for name in names}
        self.progress = 0.0

    def _column(self, name: str, value: PerMember | None) -> Tensor:
        values = (
            [torch.inf if value is None else value] if value is None or isinstance(value, int | float) else list(value)
        )
        if len(values) not in (1, self.n_members):
            raise InputError(f"{name}: {len(values)} values for {self.n_members} members")
        column = torch.tensor(values, dtype=torch.float32, device=self.device).view(-1, 1)
        return column.expand(self.n_members, 1).contiguous()

    def act(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy.sample(x, noise)

    @torch.no_grad()
    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """(advantages, returns, values), each (P, T * N / P), with the values of one pass over the rollout."""
        t = rollout.horizon_len
        value = self._values(rollout, rollout.bar, rollout.state, t + 1)
        done = rollout.terminated | rollout.truncated
        next_value = torch.where(done, self._final_values(rollout), value[1:])
        next_value = torch.where(rollout.terminated, 0.0, next_value)
        per_env = rollout.n_envs // self.n_members
        gamma, lam, scale = (
            self.hyper[name].repeat_interleave(per_env, 0).squeeze(1)
            for name in ("gamma", "gae_lambda", "reward_scale")
        )
        advantage, returns = gae(rollout.reward * scale, value[:-1], next_value, done, gamma, lam)
        return tuple(rollout.by_member(x) for x in (advantage, returns, value[:-1]))

    def _values(self, rollout: Rollout, bar: Tensor | None, state: Tensor, steps: int) -> Tensor:
        dense = rollout.dense(None if bar is None else rollout.by_member(bar), rollout.by_member(state))
        return rollout.by_time(self.policy.value(dense), steps)

    def _final_values(self, rollout: Rollout) -> Tensor:
        """(T, N) values of the final observations of truncated episodes; elsewhere any number.

        On the CPU only those are evaluated; elsewhere all are, since looking where they are would wait for the device.
        """
        if self.device.type != "cpu":
            return self._values(rollout, rollout.final_bar, rollout.final_state, rollout.horizon_len)
        values = torch.zeros_like(rollout.reward)
        step, env = rollout.truncated.nonzero(as_tuple=True)
        if step.numel():
            bar = None if rollout.final_bar is None else rollout.final_bar[step, env]
            dense = rollout.dense(bar, rollout.final_state[step, env])
            member = env // (rollout.n_envs // self.n_members)
            own = [(member == p).nonzero().squeeze(1) for p in range(self.n_members)]
            padded = torch.nn.utils.rnn.pad_sequence([dense[rows] for rows in own], batch_first=True)
            for rows, value in zip(own, self.policy.value(padded), strict=True):
                values[step[rows], env[rows]] = value[: len(rows)]
        return values

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """`update_epochs` passes of `num_minibatches` steps. Returns (P,) figures, means over the passes made."""
        config, hyper, p = self.config, self.hyper, self.n_members
        advantage, returns, value = self.advantages(rollout)
        state, action, old = (rollout.by_member(x) for x in (rollout.state[:-1], rollout.action, rollout.log_prob))
        bar = None if rollout.bar is None else rollout.by_member(rollout.bar[:-1])
        samples = old.shape[1]
        # A standard deviation needs two samples.
        if samples < config.num_minibatches * (2 if config.norm_adv else 1):
            raise InputError(f"num_minibatches={config.num_minibatches} is too many for {samples} samples")
        learning_rate = hyper["learning_rate"] * (1 - self.progress if config.anneal_lr else 1)
        member = torch.arange(p, device=self.device).unsqueeze(1)
        active = torch.ones(p, 1, dtype=torch.bool, device=self.device)
        sums: dict[str, Tensor] = {}
        weight = torch.zeros(p, device=self.device)
        # All epochs' orders at once: a member must draw as often when it, or all members, stop early.
        orders = [
            torch.stack([torch.randperm(samples, generator=g) for g in self.shuffle_generators])
            for _ in range(config.update_epochs)
        ]
        for order in orders:
            epoch_kl = torch.zeros(p, device=self.device)
            chunks = order.to(self.device).tensor_split(config.num_minibatches, dim=1)
            for index in chunks:
                pick = (member, index)
                own = advantage[pick]
                if config.norm_adv:
                    own = (own - own.mean(1, keepdim=True)) / (own.std(1, keepdim=True) + 1e-8)
                x = rollout.dense(None if bar is None else bar[pick], state[pick])
                log_prob, entropy, new_value = self.policy.evaluate(x, action[pick])
                coefficients = (hyper["clip_coef"], hyper["ent_coef"], hyper["vf_coef"])
                loss, parts = ppo_loss(log_prob, old[pick], entropy, new_value, own, returns[pick], *coefficients)
                self.parameters.zero_grad()
                loss.sum().backward()
                norm = self.optimizer.step(learning_rate, hyper["max_grad_norm"], active).squeeze(1)
                live = active.squeeze(1)
                parts |= {"grad_norm": norm, "skipped_updates": (~norm.isfinite()).float()}
                for name, part in parts.items():
                    # where, not a product: what becomes of a member that has stopped does not count.
                    sums[name] = sums.get(name, 0.0) + torch.where(live, part, 0.0)
                weight += live
                epoch_kl += parts["approx_kl"]
            active = active & (epoch_kl / len(chunks) <= hyper["target_kl"].squeeze(1)).unsqueeze(1)
            # Asking costs a wait for the device; on the CPU it is free and ends the pass early.
            if self.device.type == "cpu" and not bool(active.any()):
                break
        if self.policy.state_normalizer is not None:
            # After the update: within it, observations must look as they did when the actions were chosen.
            self.policy.state_normalizer.update(state)
        figures = {name: total / weight for name, total in sums.items()}
        figures["explained_variance"] = explained_variance(value, returns, dim=1)
        figures["reward"] = rollout.by_member(rollout.reward).mean(1)
        if self.policy.log_std is not None:
            figures["action_std"] = self.policy.log_std.detach().exp().mean((1, 2))
        return figures

    def state_dict(self) -> dict[str, Any]:
        shuffles = torch.stack([g.get_state() for g in self.shuffle_generators])
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict(), "shuffle_generators": shuffles}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
        for generator, own in zip(self.shuffle_generators, state["shuffle_generators"], strict=True):
            generator.set_state(own.clone())  # torch 2.13 crashes on a view
