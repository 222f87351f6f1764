"""Rollout: T steps of N environments, time-major, allocated once.

A step is kept as a bar index and a state vector; what is read of the market is gathered where it is needed.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from environments.observation import Observation, build_observation
from environments.vec_env import Step, VecEnv


class Rollout:
    """Buffers for `horizon_len` steps of an environment with C clocks (C = N unless environments share them).

    bar (T + 1, C) int32 and state (T + 1, N, K): what was seen before each step, and after the last.
    final_bar (T, C), final_state (T, N, K): the true successor of each step.
    action (T, N, ...), log_prob (T, N), reward (T, N), terminated and truncated (T, N) bool.
    memory (P, N / P, M): of a policy that remembers, before the first step; else None.
    """

    def __init__(self, env: VecEnv, horizon_len: int, action_shape: tuple[int, ...], action_dtype: torch.dtype) -> None:
        t, n, k, device = horizon_len, env.n_envs, env.state_size, env.device
        self.rows, self.lookback, self.n_members = env.rows, env.lookback, env.n_members
        self.horizon_len, self.n_envs, self.envs_per_clock = t, n, env.envs_per_clock
        self._parts: dict[int, list[Rollout]] = {}
        self.memory: Tensor | None = None
        clocks = n // env.envs_per_clock
        self.bar = None if env.rows is None else torch.zeros(t + 1, clocks, dtype=torch.int32, device=device)
        self.final_bar = None if env.rows is None else torch.zeros(t, clocks, dtype=torch.int32, device=device)
        self.state = torch.zeros(t + 1, n, k, device=device)
        self.final_state = torch.zeros(t, n, k, device=device)
        self.action = torch.zeros(t, n, *action_shape, dtype=action_dtype, device=device)
        self.log_prob = torch.zeros(t, n, device=device)
        self.reward = torch.zeros(t, n, device=device)
        self.terminated = torch.zeros(t, n, dtype=torch.bool, device=device)
        self.truncated = torch.zeros(t, n, dtype=torch.bool, device=device)

    def parts(self, stride: int) -> list[Rollout]:
        """The buffers cut into `stride` steps each (fewer in the last), to be written to; the same cuts each time."""
        if stride not in self._parts:
            self._parts[stride] = [
                self._part(slice(first, min(first + stride, self.horizon_len)))
                for first in range(0, self.horizon_len, stride)
            ]
        return self._parts[stride]

    def _part(self, steps: slice) -> Rollout:
        own = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and name not in ("rows", "memory"):
                setattr(own, name, value[steps])
        own.horizon_len = steps.stop - steps.start
        return own

    def keep_memory(self, memory: Tensor) -> Tensor:
        """`memory` as it was before the first step, in a buffer that stays where it is."""
        if self.memory is None:
            self.memory = torch.empty_like(memory)
        return self.memory.copy_(memory)

    def put_observation(self, t: int, observation: Observation) -> None:
        self.state[t].copy_(observation.state)
        if self.bar is not None:
            self.bar[t].copy_(observation.bar[:: self.envs_per_clock])

    def put_step(self, t: int, action: Tensor, log_prob: Tensor, step: Step) -> None:
        self.action[t].copy_(action)
        self.log_prob[t].copy_(log_prob)
        self.reward[t].copy_(step.reward)
        self.terminated[t].copy_(step.terminated)
        self.truncated[t].copy_(step.truncated)
        self.final_state[t].copy_(step.final_observation.state)
        if self.final_bar is not None:
            self.final_bar[t].copy_(step.final_observation.bar[:: self.envs_per_clock])

    def by_member(self, x: Tensor) -> Tensor:
        """(T, N, ...) -> (P, T * N / P, ...): a member's samples in one row, those of a clock's step in succession."""
        t, n = x.shape[:2]
        p = self.n_members
        return x.view(t, p, n // p, *x.shape[2:]).transpose(0, 1).reshape(p, t * (n // p), *x.shape[2:])

    def by_sequence(self, x: Tensor) -> Tensor:
        """(T, N or clocks, ...) -> (P, T * N / P, ...): a member's samples clock by clock, of each all T steps in
        succession, in a step those that share the clock."""
        t, p = x.shape[0], self.n_members
        clocks = self.n_envs // self.envs_per_clock // p
        return x.view(t, p, clocks, -1, *x.shape[2:]).movedim(0, 2).reshape(p, -1, *x.shape[2:])

    def sequences_by_time(self, x: Tensor, steps: int) -> Tensor:
        """(P, steps * N / P, ...) -> (steps, N, ...), the inverse of `by_sequence`."""
        each = self.envs_per_clock
        x = x.view(self.n_members, -1, steps, each, *x.shape[2:]).movedim(2, 0)
        return x.reshape(steps, self.n_envs, *x.shape[4:])

    def by_time(self, x: Tensor, steps: int) -> Tensor:
        """(P, steps * N / P) -> (steps, N), the inverse of `by_member`."""
        return x.view(self.n_members, steps, -1).transpose(0, 1).reshape(steps, self.n_envs)

    def dense(self, bar: Tensor | None, state: Tensor) -> Tensor:
        """Dense observations of bars (...) and states (..., K)."""
        return build_observation(self.rows, Observation(bar, state), self.lookback)
