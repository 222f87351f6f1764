"""PPOConfig: the hyper-parameters of PPO, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from environments.errors import InputError

PerMember = float | Sequence[float]


@dataclass(frozen=True)
class PPOConfig:
    """Hyper-parameters, named as CleanRL names them. Those typed `PerMember` may differ between members.

    horizon_len: T, steps of each environment per rollout. target_kl: mean KL divergence of an epoch after which the
    member's update ends (None: never). critic_learning_rate: the critic has an optimiser of its own, with its own norm
    limit (None: one for both, unless critic_epochs). critic_epochs: passes over the samples after the others in which
    the critic alone learns. reward_scale: factor on every reward. anneal_lr: the learning rate
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
    critic_learning_rate: PerMember | None = None
    critic_epochs: int = 0
    reward_scale: PerMember = 1.0
    group_baseline: bool = False
    amp: str = "off"
    compile: str = "auto"

    def __post_init__(self) -> None:
        for name in ("horizon_len", "num_minibatches", "update_epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: at least 1 is needed")
        if self.critic_epochs < 0:
            raise InputError(f"critic_epochs={self.critic_epochs}: at least 0 is needed")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is None:
                continue
            for one in [value] if isinstance(value, int | float) else value:
                if not low <= one <= high:
                    raise InputError(f"{name}={one}: accepted are {low} to {high}")


_RANGES = (
    ("learning_rate", 0.0, 1.0),
    ("critic_learning_rate", 0.0, 1.0),
    ("gamma", 0.0, 1.0),
    ("gae_lambda", 0.0, 1.0),
    ("clip_coef", 1e-6, 10.0),
    ("ent_coef", 0.0, 10.0),
    ("vf_coef", 0.0, 100.0),
    ("max_grad_norm", 1e-6, 1e6),
    ("target_kl", 1e-6, 1e6),
    ("reward_scale", 1e-9, 1e9),
)
