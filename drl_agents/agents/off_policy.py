"""AgentOffPolicy: learns from a replay of what it saw, whoever acted then."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from drl_agents.agents.adam import FlatAdam
from drl_agents.agents.base import AgentBase
from drl_agents.agents.members import PerMember, check_ranges, member_columns
from drl_agents.networks.build import MEMORYLESS, build_policy
from drl_agents.networks.population import FlatParameters, member_generators
from drl_agents.networks.spec import PolicySpec
from drl_agents.rollout.buffer import Rollout
from drl_agents.rollout.replay import Batch, Replay
from environments.errors import InputError
from environments.vec_env import VecEnv

_DRAWN = 256  # gradient steps whose random numbers are drawn at a time


@dataclass(frozen=True)
class OffPolicyConfig:
    """What all off-policy agents have, named as CleanRL names it. Those typed `PerMember` may differ between members.

    horizon_len: T, steps of each environment between updates. buffer_size: transitions kept. batch_size: of a gradient
    step. learning_starts: steps with random actions, before anything is learnt. update_to_data: gradient steps for each
    environment step. These count for each member, its environments together. n_step: steps of reward before a value
    takes over. prioritized_replay: transitions are drawn by their error, with exponents prioritized_replay_alpha, and
    prioritized_replay_beta of the correction, which rises to 1 over training. gamma: discount of a step. tau: share of
    the learnt networks that the target networks take over. max_grad_norm: None for no limit. reward_scale: factor on
    every reward. amp: precision of matrix products, "off" (float32) or "bf16". compile: see `Compiler`.
    """

    horizon_len: int = 8
    buffer_size: int = 1_000_000
    batch_size: int = 256
    learning_starts: int = 1_000
    update_to_data: float = 1.0
    n_step: int = 1
    prioritized_replay: bool = False
    prioritized_replay_alpha: float = 0.5
    prioritized_replay_beta: float = 0.4
    gamma: PerMember = 0.99
    tau: PerMember = 0.005
    max_grad_norm: PerMember | None = None
    reward_scale: PerMember = 1.0
    amp: str = "off"
    compile: str = "auto"

    RANGES = (
        ("horizon_len", 1, 1e6), ("buffer_size", 1, 1e12), ("batch_size", 1, 1e9), ("learning_starts", 0, 1e12),
        ("update_to_data", 0.0, 1e4), ("n_step", 1, 1e4), ("prioritized_replay_alpha", 0.0, 1.0),
        ("prioritized_replay_beta", 0.0, 1.0), ("gamma", 0.0, 1.0), ("tau", 0.0, 1.0), ("max_grad_norm", 1e-6, 1e6),
        ("reward_scale", 1e-9, 1e9),
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_ranges(self, self.RANGES)
        if self.amp not in ("off", "bf16"):
            raise InputError(f"amp={self.amp!r}: off-policy agents accept off, bf16")


class AgentOffPolicy(AgentBase):
    """An agent with a replay, P members at once.

    A subclass writes `act` and `learn`, and `noise_size` and `period` where it needs them.

    Attributes:
        replay: made at the first update, when the environment's sizes are known.
        timesteps: environment steps seen by each member.
        updates: gradient steps taken.

    Args:
        spec: as the policy is built.
        config: hyper-parameters.
        seeds: one per member; a member depends on its own seed alone.

    Raises:
        InputError: another network than `MEMORYLESS`: a replay keeps no memory from step to step.
    """

    def __init__(
        self, spec: PolicySpec, config: OffPolicyConfig, seeds: Sequence[int], device: torch.device | str
    ) -> None:
        self.spec, self.config = spec, config
        super().__init__(seeds, torch.device(device), config.amp, config.compile)
        self.policy = build_policy(spec, seeds, accepted=MEMORYLESS).to(self.device)
        if self.policy.why_uncompiled:
            self.compiler.refuse(self.policy.why_uncompiled)
        self.distribution = self.policy.distribution
        self.hyper = member_columns(config, self.n_members, self.device)
        self.update_generators = list(member_generators(seeds, stream=2, device=self.device))
        self.replay: Replay | None = None
        self._saved_replay: dict[str, Any] | None = None
        self.timesteps = self.updates = 0
        self._owed = 0.0  # gradient steps not taken yet, a fraction of one
        self.progress = 0.0
        self._random = True
        self._learnt: dict[str, tuple[FlatParameters, FlatAdam | None]] = {}

    # ----------------------------------------------------------------------------------------------- exploring

    def explore_vec_env(self, env: VecEnv, horizon_len: int) -> Rollout:
        # For a whole rollout, so that a step has no branch on how many there were.
        self._random = self.timesteps < self.config.learning_starts
        return super().explore_vec_env(env, horizon_len)

    def embed(self, windows: Tensor) -> Tensor:
        return self.policy.embed(windows, self.policy.actor)

    def best(self, market: Tensor | None, state: Tensor) -> Tensor:
        return self.policy.distribution.mode(self.head(market, state))

    def head(self, market: Tensor | None, state: Tensor) -> Tensor:
        """The actor's output (P, n, head size) where it acts; market, state: as for `act`."""
        return self.policy.heads(market, state, self.policy.actor)[0]

    # ------------------------------------------------------------------------------------------------ learning

    @property
    def noise_size(self) -> int:
        """Normal random numbers `learn` needs for each transition."""
        return 0

    @property
    def period(self) -> int:
        """Gradient steps between those that are `due`, at which `learn` does more."""
        return 1

    @abstractmethod
    def learn(
        self, batch: Batch, seen: Tensor | None, next_seen: Tensor | None, noise: Tensor, due: bool
    ) -> dict[str, Tensor]:
        """One gradient step of every member.

        Args:
            batch: what was drawn. seen, next_seen: its market windows, normalised (P, n, L * R), None outside a market.
            noise: (P, n, noise_size) standard normal. due: this is the last of `period` steps.

        Returns:
            figures (P,) and, as "error", (P, n) of the transitions.
        """

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """Keep the rollout, and take `update_to_data` gradient steps for each of its steps; returns (P,) figures.

        While actions are random (`learning_starts`) nothing is learnt and the figures are fewer. In other environments
        than before the replay begins anew.
        """
        if self.replay is None or not self.replay.fits(rollout):
            config = self.config
            alpha = config.prioritized_replay_alpha if config.prioritized_replay else None
            self.replay = Replay(rollout, config.buffer_size, alpha)
            if self._saved_replay is not None:
                self.replay.load_state_dict(self._saved_replay)
                self._saved_replay = None
        self.replay.push(rollout)
        seen = rollout.horizon_len * self.replay.each
        self.timesteps += seen
        figures = {}
        if self.timesteps >= self.config.learning_starts:
            self._owed += self.config.update_to_data * seen
            steps = int(self._owed)
            self._owed -= steps
            figures = self._learn(rollout, steps)
        if self.policy.state_normalizer is not None:
            self.policy.state_normalizer.update(rollout.by_member(rollout.state[:-1]))
        return {**figures, "reward": rollout.by_member(rollout.reward).mean(1)}

    def _learn(self, rollout: Rollout, steps: int) -> dict[str, Tensor]:
        """`steps` gradient steps; the figures' means over those that gave them."""
        config, replay = self.config, self.replay
        windows = None if rollout.rows is None else self.windows(rollout.rows)
        beta = config.prioritized_replay_beta + (1 - config.prioritized_replay_beta) * self.progress
        learn = self.compiler(self.learn) if self.compiler.active else self.learn
        given: dict[str, list[Tensor]] = defaultdict(list)
        for first in range(0, steps, _DRAWN):
            times = min(_DRAWN, steps - first)
            choices = replay.draws(self.update_generators, times, config.batch_size).to(self.device)
            shape = (times, config.batch_size, self.noise_size)
            noise = [torch.randn(shape, generator=g, device=g.device) for g in self.update_generators]
            for choice, normal in zip(choices, torch.stack(noise, 1).to(self.device), strict=True):
                batch = replay.batch(*replay.draw(choice, beta), self.hyper["gamma"], config.n_step)
                batch = batch._replace(reward=batch.reward * self.hyper["reward_scale"])
                seen, next_seen = (None, None) if windows is None else map(windows.at, (batch.bar, batch.next_bar))
                parts = learn(batch, seen, next_seen, normal, (self.updates + 1) % self.period == 0)
                error = parts.pop("error")
                if config.prioritized_replay:
                    replay.reprioritize(batch.index, error)
                for name, value in parts.items():
                    given[name].append(value)
                self.updates += 1
        return {name: torch.stack(values).mean(0) for name, values in given.items()}

    def dense(self, seen: Tensor | None, state: Tensor) -> Tensor:
        """Normalised market windows (P, n, L * R), None outside a market, and states (P, n, K) side by side."""
        return self.policy.state_normalizer(state) if seen is None else torch.cat([seen, state], dim=-1)

    # -------------------------------------------------------------------------------- what a subclass is made of

    def add_learnt(self, name: str, module: nn.Module, rows: int) -> None:
        """Let `module`, whose parameters have a leading axis of `rows`, be learnt, and saved with the agent."""
        parameters = FlatParameters(module.requires_grad_(False), rows)
        self._learnt[name] = (parameters, FlatAdam(parameters, eps=1e-8))

    def add_target(self, name: str, of: str) -> None:
        """Parameters that `follow` those learnt as `of`, equal to them at first."""
        twin = copy.copy(self._learnt[of][0])
        twin.values = twin.values.clone()
        self._learnt[name] = (twin, None)

    def views(self, name: str, grad: bool = False) -> dict[str, Tensor]:
        """The parameters learnt as `name`, for `torch.func.functional_call`; grad: a gradient is wanted."""
        views = self._learnt[name][0].views()
        return {key: view.requires_grad_() for key, view in views.items()} if grad else views

    def descend(self, name: str, learning_rate: Tensor, loss: Tensor, views: dict[str, Tensor]) -> Tensor:
        """A step of Adam down the gradient of `loss` (P,) with learning rates (P, 1).

        views: what the loss was computed from, of `views(name, grad=True)`.

        Returns:
            (P,) gradient norms, the largest of a member's rows; one that is not finite was left out.
        """
        parameters, optimizer = self._learnt[name]
        grad = parameters.flatten(torch.autograd.grad(loss.sum(), list(views.values())))
        rate, limit = (self._by_row(x, grad) for x in (learning_rate, self.hyper["max_grad_norm"]))
        norm = optimizer.step(grad, rate, limit, torch.ones_like(rate, dtype=torch.bool))
        return norm.view(self.n_members, -1).amax(1)

    @torch.no_grad()
    def follow(self, target: str, of: str) -> None:
        """target += tau (learnt - target)."""
        to = self._learnt[target][0].values
        to.lerp_(self._learnt[of][0].values, self._by_row(self.hyper["tau"], to))

    def _by_row(self, column: Tensor, rows: Tensor) -> Tensor:
        """(P, 1) -> (rows, 1), a member's value for each of its rows."""
        return column.repeat_interleave(rows.shape[0] // self.n_members, 0, output_size=rows.shape[0])

    # --------------------------------------------------------------------------------------------- persistence

    def state_dict(self) -> dict[str, Any]:
        own: dict[str, Any] = {}
        for name, (parameters, optimizer) in self._learnt.items():
            own[name] = {"values": parameters.values.clone()}
            if optimizer is not None:
                own[name]["optimizer"] = optimizer.state_dict()
        replay = self._saved_replay if self.replay is None else self.replay.state_dict()
        return {
            **super().state_dict(),
            "learnt": own,
            "update_generators": torch.stack([g.get_state() for g in self.update_generators]),
            "counts": {"timesteps": self.timesteps, "updates": self.updates, "owed": self._owed},
            # In a list, since its sizes are no part of the agent's: it grows.
            "replay": [] if replay is None else [replay],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name, (parameters, optimizer) in self._learnt.items():
            parameters.values.copy_(state["learnt"][name]["values"])
            if optimizer is not None:
                optimizer.load_state_dict(state["learnt"][name]["optimizer"])
        for generator, own in zip(self.update_generators, state["update_generators"], strict=True):
            generator.set_state(own.clone())  # torch 2.13 crashes on a view
        counts = state["counts"]
        self.timesteps, self.updates, self._owed = int(counts["timesteps"]), int(counts["updates"]), counts["owed"]
        # Its sizes are the environment's: it is put in place when the next rollout tells them.
        self.replay, self._saved_replay = None, state["replay"][0] if state["replay"] else None
