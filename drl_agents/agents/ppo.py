"""Proximal policy optimisation (Schulman et al., 2017), for P members at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drl_agents.agents.adam import FlatAdam, LossScale
from drl_agents.agents.base import AgentBase
from drl_agents.networks.normalizer import MarketWindows
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
    falls linearly to 0 over training. group_baseline: where environments share a clock, the mean advantage of the
    others of the clock's step is taken off each one's (an input-driven baseline, Mao et al., ICLR 2019). amp: precision
    of matrix products, "off" (float32), "bf16" or "fp16"; weights, optimiser and returns stay float32. compile: "auto",
    "on" or "off", see `Compiler`.
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
    group_baseline: bool = False
    amp: str = "off"
    compile: str = "auto"

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


PARTS = (
    "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "grad_norm", "skipped_updates",
)  # fmt: skip


class Batch(NamedTuple):
    """The samples of a rollout by member. bar: (P, slots); a slot's samples are neighbours in what is (P, n, ...)."""

    windows: MarketWindows | None
    bar: Tensor | None
    state: Tensor
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    returns: Tensor

    @property
    def slots(self) -> int:
        return self.log_prob.shape[1] if self.bar is None else self.bar.shape[1]


def less_the_others(advantage: Tensor, each: int) -> Tensor:
    """(T, N) advantages less the mean of the other `each` - 1 of the same clock and step: (a - mean) * e / (e - 1)."""
    own = advantage.view(advantage.shape[0], -1, each)
    return ((own - own.mean(-1, keepdim=True)) * (each / (each - 1))).view_as(advantage)


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
        self.spec, self.config = spec, config or PPOConfig()
        super().__init__(seeds, torch.device(device), self.config.amp, self.config.compile)
        self.policy = ActorCritic(spec, seeds).to(self.device)
        self.distribution = self.policy.distribution
        self.parameters = FlatParameters(self.policy, self.n_members)
        self.optimizer = FlatAdam(self.parameters)
        self.loss_scale = LossScale(self.n_members, self.device) if self.config.amp == "fp16" else None
        self.shuffle_generators = list(member_generators(seeds, stream=2, device=self.device))
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

    def embed(self, windows: Tensor) -> Tensor:
        return self.policy.embed(windows, self.policy.actor)

    def act(self, market: Tensor | None, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        (head,) = self.policy.heads(market, state, self.policy.actor)
        return self.distribution.sample(head, self.policy.log_std, noise)

    def best(self, market: Tensor | None, state: Tensor) -> Tensor:
        (head,) = self.policy.heads(market, state, self.policy.actor)
        return self.distribution.mode(head)

    @torch.no_grad()
    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """(advantages, returns, values), each (P, T * N / P), with the values of one pass over the rollout."""
        t = rollout.horizon_len
        values = self.compiler(self._values) if self.compiler.active else self._values
        bar = None if rollout.bar is None else rollout.by_member(rollout.bar)
        windows = None if rollout.rows is None else self.windows(rollout.rows)
        value = rollout.by_time(values(windows, bar, rollout.by_member(rollout.state)), t + 1)
        done = rollout.terminated | rollout.truncated
        next_value = torch.where(done, self._final_values(rollout), value[1:])
        next_value = torch.where(rollout.terminated, 0.0, next_value)
        per_env = rollout.n_envs // self.n_members
        gamma, lam, scale = (
            self.hyper[name].repeat_interleave(per_env, 0, output_size=rollout.n_envs).squeeze(1)
            for name in ("gamma", "gae_lambda", "reward_scale")
        )
        advantage, returns = gae(rollout.reward * scale, value[:-1], next_value, done, gamma, lam)
        if self.config.group_baseline and rollout.envs_per_clock > 1:
            advantage = less_the_others(advantage, rollout.envs_per_clock)
        return tuple(rollout.by_member(x) for x in (advantage, returns, value[:-1]))

    def _values(self, windows: MarketWindows | None, bar: Tensor | None, state: Tensor) -> Tensor:
        """(P, n) values of states (P, n, K) at bars (P, m), each serving n / m states that follow one another."""
        with self.precision():
            seen = None if bar is None else windows.at(bar)
            return self.policy.outputs(seen, state, self.policy.critic)[0].squeeze(-1)

    def _final_values(self, rollout: Rollout) -> Tensor:
        """(T, N) values of the final observations of truncated episodes; elsewhere any number.

        On the CPU only those are evaluated; elsewhere all are, since looking where they are would wait for the device.
        """
        if self.device.type != "cpu":
            bar = None if rollout.final_bar is None else rollout.by_member(rollout.final_bar)
            windows = None if bar is None else self.windows(rollout.rows)
            value = self._values(windows, bar, rollout.by_member(rollout.final_state))
            return rollout.by_time(value, rollout.horizon_len)
        values = torch.zeros_like(rollout.reward)
        step, env = rollout.truncated.nonzero(as_tuple=True)
        if step.numel():
            bar = None if rollout.final_bar is None else rollout.final_bar[step, env // rollout.envs_per_clock]
            dense = rollout.dense(bar, rollout.final_state[step, env])
            member = env // (rollout.n_envs // self.n_members)
            own = [(member == p).nonzero().squeeze(1) for p in range(self.n_members)]
            padded = torch.nn.utils.rnn.pad_sequence([dense[rows] for rows in own], batch_first=True)
            with self.precision():
                found = self.policy.value(padded)
            for rows, value in zip(own, found, strict=True):
                values[step[rows], env[rows]] = value[: len(rows)]
        return values

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """`update_epochs` passes of `num_minibatches` steps. Returns (P,) figures, means over the passes made.

        What is shuffled are slots: the samples that see one bar, of which there are several where environments share a
        clock. A minibatch embeds its slots' bars, once each.
        """
        config, hyper, p = self.config, self.hyper, self.n_members
        advantage, returns, value = self.advantages(rollout)
        state, action, old = (rollout.by_member(x) for x in (rollout.state[:-1], rollout.action, rollout.log_prob))
        bar = None if rollout.bar is None else rollout.by_member(rollout.bar[:-1])
        windows = None if bar is None else self.windows(rollout.rows)
        batch = Batch(windows, bar, state, action, old, advantage, returns)
        each = rollout.envs_per_clock
        slots = old.shape[1] // each
        # A standard deviation needs two samples; a minibatch is made of whole slots.
        if slots < config.num_minibatches * (2 if config.norm_adv and each == 1 else 1):
            raise InputError(f"num_minibatches={config.num_minibatches} is too many for {slots} bars that were seen")
        learning_rate = hyper["learning_rate"] * (1 - self.progress if config.anneal_lr else 1)
        active = torch.ones(p, 1, dtype=torch.bool, device=self.device)
        sums = torch.zeros(len(PARTS), p, device=self.device)
        weight = torch.zeros(p, device=self.device)
        # All epochs' orders at once: a member must draw as often when it, or all members, stop early.
        orders = [
            torch.stack([torch.randperm(slots, generator=g, device=g.device) for g in self.shuffle_generators])
            for _ in range(config.update_epochs)
        ]
        minibatch = self.compiler(self._minibatch) if self.compiler.active else self._minibatch
        for order in orders:
            epoch_kl = torch.zeros(p, device=self.device)
            chunks = order.to(self.device).tensor_split(config.num_minibatches, dim=1)
            for index in chunks:
                parts = minibatch(batch, index, learning_rate, active)
                live = active.squeeze(1)
                # where, not a product: what becomes of a member that has stopped does not count.
                sums += torch.where(live, parts, 0.0)
                weight += live
                epoch_kl += parts[PARTS.index("approx_kl")]
            active = active & (epoch_kl / len(chunks) <= hyper["target_kl"].squeeze(1)).unsqueeze(1)
            # Asking costs a wait for the device; on the CPU it is free and ends the pass early.
            if self.device.type == "cpu" and not bool(active.any()):
                break
        if self.policy.state_normalizer is not None:
            # After the update: within it, observations must look as they did when the actions were chosen.
            self.policy.state_normalizer.update(state)
        figures = dict(zip(PARTS, sums / weight, strict=True))
        figures["explained_variance"] = explained_variance(value, returns, dim=1)
        figures["reward"] = rollout.by_member(rollout.reward).mean(1)
        if self.policy.log_std is not None:
            figures["action_std"] = self.policy.log_std.detach().exp().mean((1, 2))
        return figures

    def _minibatch(self, batch: Batch, index: Tensor, learning_rate: Tensor, active: Tensor) -> Tensor:
        """One gradient step on the slots `index` (P, S); returns (len(PARTS), P) figures."""
        hyper, config = self.hyper, self.config
        member = torch.arange(self.n_members, device=self.device).unsqueeze(1)

        def pick(x: Tensor) -> Tensor:
            """(P, n, ...) -> (P, S * samples of a slot, ...)."""
            by_slot = x.view(x.shape[0], batch.slots, -1, *x.shape[2:])
            return by_slot[member, index].flatten(1, 2)

        seen = None if batch.bar is None else batch.windows.at(batch.bar[member, index])
        advantage = pick(batch.advantage)
        if config.norm_adv:
            advantage = (advantage - advantage.mean(1, keepdim=True)) / (advantage.std(1, keepdim=True) + 1e-8)
        views = {name: view.requires_grad_() for name, view in self.parameters.views().items()}
        with torch.enable_grad():
            with self.precision():
                log_prob, entropy, value = torch.func.functional_call(
                    self.policy, views, (seen, pick(batch.state), pick(batch.action))
                )
            coefficients = (hyper["clip_coef"], hyper["ent_coef"], hyper["vf_coef"])
            loss, parts = ppo_loss(
                log_prob, pick(batch.log_prob), entropy, value, advantage, pick(batch.returns), *coefficients
            )
            if self.loss_scale is not None:
                loss = loss * self.loss_scale.scale
            grads = self.parameters.flatten(torch.autograd.grad(loss.sum(), list(views.values())))
        with torch.no_grad():
            if self.loss_scale is not None:
                grads = self.loss_scale.unscale(grads)
            norm = self.optimizer.step(grads, learning_rate, hyper["max_grad_norm"], active).squeeze(1)
        parts |= {"grad_norm": norm, "skipped_updates": (~norm.isfinite()).float()}
        return torch.stack([parts[name] for name in PARTS])

    def state_dict(self) -> dict[str, Any]:
        shuffles = torch.stack([g.get_state() for g in self.shuffle_generators])
        scale = {} if self.loss_scale is None else {"loss_scale": self.loss_scale.state_dict()}
        own = {"optimizer": self.optimizer.state_dict(), "shuffle_generators": shuffles}
        return {**super().state_dict(), **own, **scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.loss_scale is not None:
            self.loss_scale.load_state_dict(state["loss_scale"])
        for generator, own in zip(self.shuffle_generators, state["shuffle_generators"], strict=True):
            generator.set_state(own.clone())  # torch 2.13 crashes on a view
