"""Proximal policy optimisation (Schulman et al., 2017), for P members at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drl_agents.agents.adam import FlatAdam, LossScale
from drl_agents.agents.base import AgentBase
from drl_agents.agents.critic import train_critic
from drl_agents.agents.pieces import pieces
from drl_agents.agents.ppo_config import PerMember, PPOConfig
from drl_agents.agents.ppo_loss import PARTS, less_the_others, ppo_loss
from drl_agents.agents.sequences import episode_begins, sequence_values
from drl_agents.networks.build import build_policy
from drl_agents.networks.normalizer import MarketWindows
from drl_agents.networks.policy import PolicySpec
from drl_agents.networks.population import FlatParameters, member_generators
from drl_agents.rollout.buffer import Rollout
from drl_agents.rollout.returns import explained_variance, gae
from environments.errors import InputError
from environments.vec_env import VecEnv


class Batch(NamedTuple):
    """The samples of a rollout by member, in slots that are shuffled: a slot's samples are neighbours in (P, n, ...).

    A slot is a bar that was seen, bar: (P, slots); or, of a policy that remembers, a clock's sequence of T bars, bar:
    (P, slots, T), with the memory (P, N / P, M) before its first and begins (P, n), where an episode begins.
    """

    slots: int
    windows: MarketWindows | None
    bar: Tensor | None
    state: Tensor
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    returns: Tensor
    memory: Tensor | None = None
    begins: Tensor | None = None

    @property
    def each(self) -> int:
        """Samples of a slot."""
        return self.log_prob.shape[1] // self.slots


class AgentPPO(AgentBase):
    """PPO over Box and Discrete actions.

    Args:
        spec: the policy's shapes and network.
        config: hyper-parameters.
        seeds: one per member; a member depends on its own seed alone.
    """

    recordable = True

    def __init__(
        self,
        spec: PolicySpec,
        config: PPOConfig | None = None,
        seeds: Sequence[int] = (0,),
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec, self.config = spec, config or PPOConfig()
        super().__init__(seeds, torch.device(device), self.config.amp, self.config.compile)
        self.policy = build_policy(spec, seeds).to(self.device)
        if self.policy.why_uncompiled:
            self.compiler.refuse(self.policy.why_uncompiled)
        self.distribution = self.policy.distribution
        self.parameters = FlatParameters(self.policy, self.n_members)
        self.optimizer, self.critic_optimizer = FlatAdam(self.parameters), None
        if self.config.critic_epochs or self.config.critic_learning_rate is not None:
            if isinstance(self.policy.critic, str):
                raise InputError(f"critic_epochs, critic_learning_rate: network {spec.network!r} has no critic apart")
            self.optimizer, self.critic_optimizer = (FlatAdam(part) for part in self.parameters.split("critic."))
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

    def check_env(self, env: VecEnv) -> None:
        if self.config.group_baseline and env.envs_per_clock == 1:
            raise InputError(
                "group_baseline is of environments that share a clock, and here each has its own: accepted with fewer "
                "clock_groups than n_envs"
            )

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
        value, final = self._rollout_values(rollout)
        done = rollout.terminated | rollout.truncated
        next_value = torch.where(done, final, value[1:])
        next_value = torch.where(rollout.terminated, 0.0, next_value)
        per_env = rollout.n_envs // self.n_members
        gamma, lam, scale = (
            self.hyper[name].repeat_interleave(per_env, 0, output_size=rollout.n_envs).squeeze(1)
            for name in ("gamma", "gae_lambda", "reward_scale")
        )
        advantage, returns = gae(rollout.reward * scale, value[:-1], next_value, done, gamma, lam)
        if self.config.group_baseline:
            advantage = less_the_others(advantage, rollout.envs_per_clock)
        return tuple(self._by_member(rollout, x) for x in (advantage, returns, value[:-1]))

    def _by_member(self, rollout: Rollout, x: Tensor) -> Tensor:
        """(T, N, ...) -> (P, T * N / P, ...) in the order of what is shuffled: steps, or sequences."""
        return rollout.by_sequence(x) if self.policy.memory_size else rollout.by_member(x)

    @torch.no_grad()
    def _rollout_values(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Values (T + 1, N) of what was seen before each step and after the last; `_final_values` (T, N)."""
        if self.policy.memory_size:
            return sequence_values(self, rollout)
        values = self.compiler(self._values) if self.compiler.active else self._values
        bar = None if rollout.bar is None else rollout.by_member(rollout.bar)
        windows = None if rollout.rows is None else self.windows(rollout.rows)
        value = values(windows, bar, rollout.by_member(rollout.state))
        return rollout.by_time(value, rollout.horizon_len + 1), self._final_values(rollout)

    def seen(self, windows: MarketWindows | None, bar: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The windows of bars (P, m), and (P, m) which of them each bar's is, or None: one by one.

        What an encoder makes of a window is worth finding those that are seen more than once. Not where it is compiled
        or would wait for the device: how many there are is not known before.
        """
        if bar is None:
            return None, None
        if self.policy.encoder is None or not self.looks or torch.compiler.is_compiling():
            return windows.at(bar), None
        found = [own.unique(return_inverse=True) for own in bar]
        bars = torch.nn.utils.rnn.pad_sequence([own for own, _ in found], batch_first=True)
        return windows.at(bars), torch.stack([where for _, where in found])

    def _values(self, windows: MarketWindows | None, bar: Tensor | None, state: Tensor) -> Tensor:
        """(P, n) values of states (P, n, K) at bars (P, m), each serving n / m states that follow one another."""
        with self.precision():
            seen, where = self.seen(windows, bar)
            return self.policy.outputs(seen, state, self.policy.critic, where=where)[0].squeeze(-1)

    def _final_values(self, rollout: Rollout) -> Tensor:
        """(T, N) values of the final observations of truncated episodes; elsewhere any number.

        Where it may look only those are evaluated, elsewhere all are.
        """
        if not self.looks:
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
        clock. A minibatch embeds its slots' bars, once each. Of a policy that remembers it is whole sequences; they are
        never compiled, since their loop over T would be unrolled into as many copies of its body.
        """
        config = self.config
        slots = rollout.horizon_len * rollout.n_envs // self.n_members // rollout.envs_per_clock
        if self.policy.memory_size:
            slots //= rollout.horizon_len
        # A standard deviation needs two samples; a minibatch is made of whole slots.
        alone = rollout.envs_per_clock * (rollout.horizon_len if self.policy.memory_size else 1) == 1
        if slots < config.num_minibatches * (2 if config.norm_adv and alone else 1):
            what = "sequences" if self.policy.memory_size else "bars"
            raise InputError(f"num_minibatches={config.num_minibatches} is too many for {slots} {what} that were seen")
        falling = 1 - self.progress if config.anneal_lr else 1.0
        rates = self.hyper["learning_rate"] * falling, self.critic_rate() * falling
        # All orders at once: a member must draw as often when it, or all members, stop early.
        orders = self.orders(slots, config.update_epochs), self.orders(slots, config.critic_epochs)
        windows = None if rollout.rows is None else self.windows(rollout.rows)
        return self.graphs(self._learn, windows, rollout, *rates, *orders)

    def _learn(
        self,
        windows: MarketWindows | None,
        rollout: Rollout,
        rate: Tensor,
        critic_rate: Tensor,
        orders: list[Tensor],
        critic_orders: list[Tensor],
    ) -> dict[str, Tensor]:
        """`update` at learning rates (P, 1), with an order (P, slots) for each epoch, the critic's own among them.

        windows: the market's, which a recording is of.
        """
        config, hyper, p = self.config, self.hyper, self.n_members
        advantage, returns, value = self.advantages(rollout)
        batch = self._batch(rollout, advantage, returns)
        learning_rate = rate if self.critic_optimizer is None else torch.cat([rate, critic_rate], dim=1)
        active = torch.ones(p, 1, dtype=torch.bool, device=self.device)
        sums = torch.zeros(len(PARTS), p, device=self.device)
        weight = torch.zeros(p, device=self.device)
        compiled = self.compiler.active and not self.policy.memory_size
        minibatch = self.compiler(self._minibatch) if compiled else self._minibatch
        if self.cuts and pieces(batch.slots // config.num_minibatches, batch.each) > 1:
            minibatch = self._in_pieces
        for order in orders:
            epoch_kl = torch.zeros(p, device=self.device)
            chunks = order.tensor_split(config.num_minibatches, dim=1)
            for index in chunks:
                parts = minibatch(batch, index, learning_rate, active)
                live = active.squeeze(1)
                # where, not a product: what becomes of a member that has stopped does not count.
                sums += torch.where(live, parts, 0.0)
                weight += live
                epoch_kl += parts[PARTS.index("approx_kl")]
            active = active & (epoch_kl / len(chunks) <= hyper["target_kl"].squeeze(1)).unsqueeze(1)
            if self.looks and not bool(active.any()):
                break
        after = None
        if config.critic_epochs:
            if not self.graphs.recording:
                self.on_phase("critic")
            train_critic(self, rollout, batch, critic_rate, critic_orders)
            after = self._by_member(rollout, self._rollout_values(rollout)[0][:-1])
        if self.policy.state_normalizer is not None:
            # After the update: within it, observations must look as they did when the actions were chosen.
            self.policy.state_normalizer.update(batch.state)
        figures = dict(zip(PARTS, sums / weight, strict=True))
        figures["explained_variance"] = explained_variance(value, returns, dim=1)
        if after is not None:
            figures["explained_variance_after"] = explained_variance(after, returns, dim=1)
        figures["reward"] = rollout.by_member(rollout.reward).mean(1)
        if self.policy.log_std is not None:
            figures["action_std"] = self.policy.log_std.detach().exp().mean((1, 2))
        return figures

    def _batch(self, rollout: Rollout, advantage: Tensor, returns: Tensor) -> Batch:
        """The samples with their advantages and returns (P, T * N / P)."""
        p, t = self.n_members, rollout.horizon_len
        state, action, old = (
            self._by_member(rollout, x) for x in (rollout.state[:-1], rollout.action, rollout.log_prob)
        )
        bar = None if rollout.bar is None else self._by_member(rollout, rollout.bar[:-1])
        windows = None if bar is None else self.windows(rollout.rows)
        slots = old.shape[1] // rollout.envs_per_clock
        if not self.policy.memory_size:
            return Batch(slots, windows, bar, state, action, old, advantage, returns)
        bar = None if bar is None else bar.view(p, -1, t)
        begins = rollout.by_sequence(episode_begins(rollout)[:-1])
        return Batch(slots // t, windows, bar, state, action, old, advantage, returns, rollout.memory, begins)

    def orders(self, slots: int, epochs: int) -> list[Tensor]:
        """A random order (P, slots) for each epoch."""
        return [
            torch.stack([torch.randperm(slots, generator=g, device=g.device) for g in self.shuffle_generators]).to(
                self.device
            )
            for _ in range(epochs)
        ]

    def critic_rate(self) -> Tensor:
        """(P, 1) the critic's learning rate: the actor's unless it has its own."""
        own = self.hyper["critic_learning_rate"]
        return torch.where(own.isinf(), self.hyper["learning_rate"], own)

    def pick(self, batch: Batch, x: Tensor, index: Tensor) -> Tensor:
        """(P, n, ...) -> (P, S * samples of a slot, ...), those of the slots `index` (P, S)."""
        member = torch.arange(self.n_members, device=self.device).unsqueeze(1)
        by_slot = x.view(x.shape[0], batch.slots, -1, *x.shape[2:])
        return by_slot[member, index].flatten(1, 2)

    def pick_bars(self, batch: Batch, index: Tensor) -> Tensor | None:
        """(P, S) bars of the slots `index` (P, S), or (P, S * T) of sequences; None outside a market."""
        if batch.bar is None:
            return None
        member = torch.arange(self.n_members, device=self.device).unsqueeze(1)
        return batch.bar[member, index].flatten(1)

    def _minibatch(self, batch: Batch, index: Tensor, learning_rate: Tensor, active: Tensor) -> Tensor:
        """One gradient step on the slots `index` (P, S); returns (len(PARTS), P) figures."""
        return self._descend(*self._gradient(batch, index, *self._moments(batch, index)), learning_rate, active)

    def _in_pieces(self, batch: Batch, index: Tensor, learning_rate: Tensor, active: Tensor) -> Tensor:
        """`_minibatch` with the gradient summed over pieces of the slots, so that what lies between the layers of one
        stays in the caches: the mean over all is the mean of the pieces' means, weighted by their sizes."""
        gradient = self.compiler(self._gradient) if self.compiler.active else self._gradient
        moments, sums = self._moments(batch, index), None
        for piece in index.tensor_split(pieces(index.shape[1], batch.each), dim=1):
            own = [x * (piece.shape[1] / index.shape[1]) for x in gradient(batch, piece, *moments)]
            sums = own if sums is None else [x.add_(y) for x, y in zip(sums, own, strict=True)]
        return self._descend(*sums, learning_rate, active)

    @property
    def cuts(self) -> bool:
        """Whether large minibatches fall into `pieces`: not on a GPU, and not where an encoder looks for bars that are
        seen more than once."""
        return self.looks and not self.policy.memory_size and self.policy.encoder is None

    @torch.no_grad()
    def _moments(self, batch: Batch, index: Tensor) -> tuple[Tensor, Tensor]:
        """What is taken off the advantages of the slots `index` (P, S), and what they are divided by: (P, 1) each."""
        if not self.config.norm_adv:
            return torch.zeros_like(batch.advantage[:, :1]), torch.ones_like(batch.advantage[:, :1])
        advantage = self.pick(batch, batch.advantage, index)
        return advantage.mean(1, keepdim=True), advantage.std(1, keepdim=True) + 1e-8

    def _gradient(self, batch: Batch, index: Tensor, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient (P, D) of the slots `index` (P, S), in float16 of the scaled loss, and the figures of PARTS that
        come with it, (number, P). mean, spread: of `_moments`."""
        hyper = self.hyper

        def pick(x: Tensor) -> Tensor:
            return self.pick(batch, x, index)

        seen, where = self.seen(batch.windows, self.pick_bars(batch, index))
        sequence = () if batch.memory is None else (pick(batch.memory), pick(batch.begins))
        advantage = (pick(batch.advantage) - mean) / spread
        views = {name: view.requires_grad_() for name, view in self.parameters.views().items()}
        with torch.enable_grad():
            with self.precision():
                log_prob, entropy, value = torch.func.functional_call(
                    self.policy, views, (seen, pick(batch.state), pick(batch.action), where, *sequence)
                )
            coefficients = (hyper["clip_coef"], hyper["ent_coef"], hyper["vf_coef"])
            loss, parts = ppo_loss(
                log_prob, pick(batch.log_prob), entropy, value, advantage, pick(batch.returns), *coefficients
            )
            if self.loss_scale is not None:
                loss = loss * self.loss_scale.scale
            grads = self.parameters.flatten(torch.autograd.grad(loss.sum(), list(views.values())))
        return grads, torch.stack([parts[name] for name in PARTS if name in parts])

    @torch.no_grad()
    def _descend(self, grads: Tensor, parts: Tensor, learning_rate: Tensor, active: Tensor) -> Tensor:
        """A step down `grads`; returns the (len(PARTS), P) figures, of which `parts` are the first."""
        if self.loss_scale is not None:
            grads = self.loss_scale.unscale(grads)
        norm = self._step(grads, learning_rate, active).squeeze(1)
        return torch.cat([parts, torch.stack([norm, (~norm.isfinite()).float()])])

    def _step(self, grads: Tensor, learning_rate: Tensor, active: Tensor) -> Tensor:
        """One step of the optimiser, or of both at rates (P, 2); the norm (P, 1) of all gradients before clipping."""
        limit = self.hyper["max_grad_norm"]
        if self.critic_optimizer is None:
            return self.optimizer.step(grads, learning_rate, limit, active)
        own, critic = grads.split([self.optimizer.first.shape[1], self.critic_optimizer.first.shape[1]], dim=1)
        rest = self.optimizer.step(own, learning_rate[:, :1], limit, active)
        return torch.hypot(rest, self.critic_optimizer.step(critic, learning_rate[:, 1:], limit, active))

    def state_dict(self) -> dict[str, Any]:
        shuffles = torch.stack([g.get_state() for g in self.shuffle_generators])
        scale = {} if self.loss_scale is None else {"loss_scale": self.loss_scale.state_dict()}
        own = {"optimizer": self.optimizer.state_dict(), "shuffle_generators": shuffles}
        if self.critic_optimizer is not None:
            own["critic_optimizer"] = self.critic_optimizer.state_dict()
        return {**super().state_dict(), **own, **scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.critic_optimizer is not None:
            self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        if self.loss_scale is not None:
            self.loss_scale.load_state_dict(state["loss_scale"])
        for generator, own in zip(self.shuffle_generators, state["shuffle_generators"], strict=True):
            generator.set_state(own.clone())  # torch 2.13 crashes on a view
