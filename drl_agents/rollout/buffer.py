"""Rollout: T steps of N environments, time-major, allocated once.

A step is kept as a bar index and a state vector; the dense observation is gathered where it is read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from environments.observation import Observation, build_observation
from environments.vec_env import Step, VecEnv


class Rollout:
    """Buffers for `horizon_len` steps of an environment.

    bar (T + 1, N) int64 and state (T + 1, N, K): what was seen before each step, and after the last.
    final_bar (T, N), final_state (T, N, K): the true successor of each step.
    action (T, N, ...), log_prob (T, N), reward (T, N), terminated and truncated (T, N) bool.
    """

    def __init__(self, env: VecEnv, horizon_len: int, action_shape: tuple[int, ...], action_dtype: torch.dtype) -> None:
        t, n, k, device = horizon_len, env.n_envs, env.state_size, env.device
        self.rows, self.lookback, self.n_members = env.rows, env.lookback, env.n_members
        self.horizon_len, self.n_envs = t, n
        self.bar = None if env.rows is None else torch.zeros(t + 1, n, dtype=torch.int64, device=device)
        self.final_bar = None if env.rows is None else torch.zeros(t, n, dtype=torch.int64, device=device)
        self.state = torch.zeros(t + 1, n, k, device=device)
        self.final_state = torch.zeros(t, n, k, device=device)
        self.action = torch.zeros(t, n, *action_shape, dtype=action_dtype, device=device)
        self.log_prob = torch.zeros(t, n, device=device)
        self.reward = torch.zeros(t, n, device=device)
        self.terminated = torch.zeros(t, n, dtype=torch.bool, device=device)
        self.truncated = torch.zeros(t, n, dtype=torch.bool, device=device)

    def put_observation(self, t: int, observation: Observation) -> None:
        self.state[t].copy_(observation.state)
        if self.bar is not None:
            self.bar[t].copy_(observation.bar)

    def put_step(self, t: int, action: Tensor, log_prob: Tensor, step: Step) -> None:
        self.action[t].copy_(action)
        self.log_prob[t].copy_(log_prob)
        self.reward[t].copy_(step.reward)
        self.terminated[t].copy_(step.terminated)
        self.truncated[t].copy_(step.truncated)
        self.final_state[t].copy_(step.final_observation.state)
        if self.final_bar is not None:
            self.final_bar[t].copy_(step.final_observation.bar)

    def by_member(self, x: Tensor) -> Tensor:
        """(T, N, ...) -> (P, T * N / P, ...): a member's samples in one row."""
        t, n = x.shape[:2]
        p = self.n_members
        return x.view(t, p, n // p, *x.shape[2:]).transpose(0, 1).reshape(p, t * (n // p), *x.shape[2:])

    def by_time(self, x: Tensor, steps: int) -> Tensor:
        """(P, steps * N / P) -> (steps, N), the inverse of `by_member`."""
        return x.view(self.n_members, steps, -1).transpose(0, 1).reshape(steps, self.n_envs)

    def dense(self, bar: Tensor | None, state: Tensor) -> Tensor:
        return build_observation(self.rows, Observation(bar, state), self.lookback)
