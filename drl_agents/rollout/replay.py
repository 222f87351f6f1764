"""Replay: the transitions that were seen last, for learners that use each of them many times.

As in a rollout, what was observed is kept as a bar index and a state vector, and the market's part is gathered where it
is needed. A ring of S steps of all N environments, time-major, on the device, allocated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from drl_agents.rollout.buffer import Rollout
from environments.errors import InputError

FIELDS = ("bar", "final_bar", "state", "final_state", "action", "reward", "terminated", "truncated")
PRIORITY_FLOOR = 1e-6  # keeps transitions without an error in the draw (Schaul et al., 2016, section 3.3)


class Batch(NamedTuple):
    """Transitions of P members, n each, over up to n_step steps (Sutton & Barto, 2018, eq. 7.1).

    bar (P, n) or None, state (P, n, K), action (P, n, ...): where it began. next_bar, next_state: where it ended.
    reward (P, n): sum_k gamma^k r_k. discount (P, n): gamma^steps, 0 where the episode terminated.
    weight (P, n): importance weights. index (P, n): where it was drawn from.
    """

    bar: Tensor | None
    state: Tensor
    action: Tensor
    reward: Tensor
    next_bar: Tensor | None
    next_state: Tensor
    discount: Tensor
    weight: Tensor
    index: Tensor


class Replay:
    """The last `buffer_size` transitions of each member; a member draws from its own environments' alone.

    Args:
        like: a rollout of the environments, for shapes.
        buffer_size: transitions of each member, rounded down to whole steps of its environments.
        alpha: transitions are drawn in proportion to |error|^alpha (Schaul et al., "Prioritized Experience Replay",
            ICLR 2016); None: uniformly.

    Raises:
        InputError: the buffer is smaller than a rollout.
    """

    def __init__(self, like: Rollout, buffer_size: int, alpha: float | None = None) -> None:
        self.rows = like.rows
        self.n_members, self.n_envs, self.envs_per_clock = like.n_members, like.n_envs, like.envs_per_clock
        self.each = like.n_envs // like.n_members
        self.steps, self.alpha = buffer_size // self.each, alpha
        if self.steps < like.horizon_len:
            raise InputError(
                f"buffer_size={buffer_size}: at least n_envs * horizon_len = {self.each * like.horizon_len} is needed"
            )
        for name in FIELDS:
            source = getattr(like, name)
            setattr(self, name, None if source is None else source.new_zeros(self.steps, *source.shape[1:]))
        self.filled = self.head = 0  # steps that are there; the step that is written next
        device = like.state.device
        self.after = torch.zeros_like(like.state[0])  # the states seen after the newest step
        self.member = torch.arange(self.n_members, device=device).unsqueeze(1)
        self.priority = None if alpha is None else torch.zeros(self.n_members, self.steps * self.each, device=device)
        self.largest = torch.ones(self.n_members, 1, device=device)

    @property
    def size(self) -> int:
        """Transitions of each member that are there."""
        return self.filled * self.each

    def fits(self, rollout: Rollout) -> bool:
        """Is the rollout of the same environments: as many, on the same market?"""
        return self.rows is rollout.rows and (self.n_members, self.n_envs) == (rollout.n_members, rollout.n_envs)

    def push(self, rollout: Rollout) -> None:
        """Take in a rollout, in place of the oldest steps. A priority that is not known yet is the largest so far."""
        t = rollout.horizon_len
        if self.filled:
            # Where the environments were started anew in between, the step before has no successor in the ring.
            newest = (self.head - 1) % self.steps
            broken = (rollout.state[0] != self.after).any(-1) & ~self.terminated[newest]
            self.truncated[newest] |= broken
        where = (self.head + torch.arange(t, device=self.reward.device)) % self.steps
        for name in FIELDS:
            if (own := getattr(self, name)) is not None:
                own[where] = getattr(rollout, name)[:t]
        self.after.copy_(rollout.state[t])
        if self.priority is not None:
            self.priority.view(self.n_members, self.steps, self.each)[:, where] = self.largest.unsqueeze(-1)
        self.head = (self.head + t) % self.steps
        self.filled = min(self.filled + t, self.steps)

    # ----------------------------------------------------------------------------------------------- drawing

    def draws(self, generators: Sequence[torch.Generator], times: int, n: int) -> Tensor:
        """(times, P, n) what `times` calls of `draw` choose by; each member's from its own generator."""
        shape = (times, n)
        if self.priority is None:
            return torch.stack([torch.randint(self.size, shape, generator=g, device=g.device) for g in generators], 1)
        return torch.stack([torch.rand(shape, generator=g, device=g.device) for g in generators], 1)

    def draw(self, choice: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        """(indices, importance weights), each (P, n), for one row of `draws`.

        Prioritised: P(i) = p_i / sum p, one from each of n equal shares of the sum, found in the running sums;
        w_i = (size * P(i))^-beta / max_j w_j.
        """
        if self.priority is None:
            return choice, torch.ones(choice.shape, device=choice.device)
        # float64: in float32 the running sum of a million priorities would lose those at its end.
        running = self.priority[:, : self.size].double().cumsum(1)
        n, total = choice.shape[1], running[:, -1:]
        share = (torch.arange(n, device=choice.device) + choice.double()) / n
        index = torch.searchsorted(running, share * total, right=True).clamp(max=self.size - 1)
        chance = self.priority.gather(1, index) / total.float()
        weight = (self.size * chance).clamp(min=1e-12) ** -beta
        return index, weight / weight.amax(1, keepdim=True)

    def reprioritize(self, index: Tensor, error: Tensor) -> None:
        """Transitions `index` (P, n) turned out to have these errors (P, n): p = (|error| + `PRIORITY_FLOOR`)^alpha."""
        priority = (error.abs() + PRIORITY_FLOOR) ** self.alpha
        self.priority.scatter_(1, index, priority)
        self.largest = torch.maximum(self.largest, priority.amax(1, keepdim=True))

    def batch(self, index: Tensor, weight: Tensor, gamma: Tensor, n_step: int = 1) -> Batch:
        """The transitions `index` (P, n) over up to `n_step` steps; gamma: (P, 1).

        They end earlier where the episode does, or where what was seen ends: one that is truncated or cut off is
        continued by the value of its true last observation.
        """
        slot, env = index // self.each, self.member * self.each + index % self.each
        at = slot * self.n_envs + env
        reward, last = self._at("reward", at), at
        discount = gamma.expand_as(reward)
        if n_step > 1:
            oldest = self.head if self.filled == self.steps else 0
            left = self.filled - (slot - oldest) % self.steps  # steps from this one on
            going = ~self._ended(at)
            for k in range(1, n_step):
                going = going & (left > k)
                then = (slot + k) % self.steps * self.n_envs + env
                last = torch.where(going, then, last)
                reward = torch.where(going, reward + discount * self._at("reward", then), reward)
                discount = torch.where(going, discount * gamma, discount)
                going = going & ~self._ended(then)
        discount = torch.where(self._at("terminated", last), 0.0, discount)
        return Batch(
            self._bars("bar", at),
            self._at("state", at),
            self._at("action", at),
            reward,
            self._bars("final_bar", last),
            self._at("final_state", last),
            discount,
            weight,
            index,
        )

    def _at(self, name: str, at: Tensor) -> Tensor:
        return getattr(self, name).flatten(0, 1)[at]

    def _bars(self, name: str, at: Tensor) -> Tensor | None:
        bars = getattr(self, name)
        return None if bars is None else bars.flatten()[at // self.envs_per_clock]

    def _ended(self, at: Tensor) -> Tensor:
        return self._at("terminated", at) | self._at("truncated", at)

    # ------------------------------------------------------------------------------------------- persistence

    def state_dict(self) -> dict[str, Any]:
        """What is there, as copies; steps that were never written are left out."""
        own = {name: getattr(self, name) for name in FIELDS}
        state = {name: value[: self.filled].clone() for name, value in own.items() if value is not None}
        if self.priority is not None:
            state["priority"] = self.priority.clone()
        return {**state, "after": self.after.clone(), "largest": self.largest.clone(), "head": self.head}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave to a replay of the same size and environments."""
        self.head, self.filled = int(state["head"]), state["reward"].shape[0]
        for name in FIELDS:
            if (own := getattr(self, name)) is not None:
                own[: self.filled] = state[name]
        for name in ("after", "largest", *(() if self.priority is None else ("priority",))):
            getattr(self, name).copy_(state[name])
