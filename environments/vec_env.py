"""VecEnv: the interface every vectorised environment has.

N environments step together, on one device, without a Python loop over them. Observations are pairs
(bar index, state); outside a market the bar is None and the state is the whole observation.

Resets happen in the same step (Gymnasium's SAME_STEP autoreset): where an episode ends, `observation` is
the first of the next episode and `final_observation` the true last of this one, whose value a learner bootstraps
when the episode was *truncated* (time or data ran out) and not when it was *terminated* (ruin).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import gymnasium
import torch
from torch import Tensor

from environments.observation import Observation


class Step(NamedTuple):
    """One step of N environments. reward: (N,) float32; terminated, truncated: (N,) bool.

    Both observations may be views of the environment's own buffers: valid until its next step.
    """

    observation: Observation
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_observation: Observation


class VecEnv(ABC):
    """N environments.

    Attributes:
        n_envs: N.
        n_members: P, how many learners the environments belong to; environments p * N/P .. (p+1) * N/P - 1 are
            member p's.
        device: where the buffers live.
        single_observation_space: Box of the dense observation, (L * R + K,).
        single_action_space: Box or Discrete, of one environment.
        rows: (B, R) market rows shared by all environments, NaN where unknown, or None.
        lookback: L, how many rows an observation reads (1 without a market).
        state_size: K.
        envs_per_clock: that many environments in succession look at the same bar at every step; 1 where each has its
            own clock.
        pure: `advance` is tensors alone, without a branch on a value: it may be compiled.
    """

    n_envs: int
    n_members: int = 1
    device: torch.device
    single_observation_space: gymnasium.spaces.Box
    single_action_space: gymnasium.Space
    rows: Tensor | None = None
    lookback: int = 1
    state_size: int
    envs_per_clock: int = 1
    pure: bool = False

    @abstractmethod
    def reset(self, seed: int | None = None) -> Observation:
        """Start all episodes anew. With a seed the random numbers start anew as well."""

    @abstractmethod
    def step(self, action: Tensor) -> Step:
        """Advance every environment. action: (N, ...) of `single_action_space`, float32 or int64."""

    def draws(self, steps: int) -> Tensor | None:
        """(steps, ...) the random numbers of the next steps, one row for each `advance`; None where it needs none."""
        return None

    def advance(self, action: Tensor, draw: Tensor | None) -> Step:
        """`step` with its random numbers handed in. Called under `torch.no_grad`, unless gradients are wanted."""
        return self.step(action)

    def why_no_gradient(self) -> str | None:
        """What keeps gradients from flowing back from rewards and observations to actions; None where they do.

        Then `advance`, called with gradients enabled, leaves alone what the graphs of earlier steps have read.
        """
        return f"{type(self).__name__} has no gradient from rewards to actions"

    def detach(self) -> None:
        """Cut the graph: what comes next has no gradient to the actions taken so far."""

    def state_dict(self) -> dict[str, Any] | None:
        """All that the next step depends on, as tensors and numbers; None if it cannot be saved.

        A training run resumed over an environment that gives None starts its episodes anew.
        """
        return None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        raise NotImplementedError(f"{type(self).__name__} cannot be restored")

    def normalizer_stats(self) -> tuple[Tensor, Tensor] | None:
        """(mean, std), each (P, R): of each member's training rows; None without a market."""
        return None

    def training_rows(self) -> list[Tensor] | None:
        """The market rows of each member's training bars, (n_p, R) each; None without a market."""
        return None

    def close(self) -> None:
        """Release what the environment holds."""
