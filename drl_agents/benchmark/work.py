"""The work that is timed, the same for every learner, and the configurations it is done in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from drl_agents.agents.ppo import AgentPPO, PPOConfig
from drl_agents.networks.policy import PolicySpec
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market
from environments.market_env import MarketVecEnv

LEARNERS = ("ours", "sb3", "sbx")
PARTS = ("iteration", "environment", "rollout", "update")
# Environment steps of a training long enough for "auto" to compile, where the machine can.
LONG_TRAINING = 1_000_000_000


@dataclass(frozen=True)
class Work:
    """One iteration of PPO on one synthetic market of round-the-clock bars, costs by commission alone."""

    n_assets: int = 10
    """assets, 11 features each"""
    n_bars: int = 20_000
    """bars of the market"""
    episode_length: int = 1_000
    """bars of an episode"""
    commission_bps: float = 30.0
    """basis points per side, the only cost"""
    hidden: tuple[int, ...] = (128, 128)
    """tanh units of the hidden layers, of actor and critic each"""
    samples: int = 16_384
    """environment steps of one iteration, unless a configuration says how many each environment makes"""
    update_epochs: int = 4
    """passes over an iteration's samples"""
    num_minibatches: int = 4
    """gradient steps of a pass"""
    market_seed: int = 1
    """seed of the market's bars"""
    seed: int = 0
    """seed of the networks, the episodes' starts and the noise"""

    def __post_init__(self) -> None:
        for name in ("n_assets", "episode_length", "samples", "update_epochs", "num_minibatches"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: at least 1 is needed")

    def market(self, device: torch.device | str = "cpu") -> Market:
        """The market, geometric Brownian motion at one-hour bars, on `device`."""
        options = {"kind": "gbm", "n_bars": self.n_bars, "n_assets": self.n_assets}
        return Market.from_bars(load_bars("synthetic", options=options, seed=self.market_seed), device)

    def costs(self) -> dict[str, Any]:
        """The environment's friction options; the commission is paid in currency."""
        others = {"spread_bps": 0.0, "slippage_bps": 0.0, "impact_coef": 0.0}
        return {"commission_bps": self.commission_bps, "fee_in": "quote", **others}


@dataclass(frozen=True)
class Configuration:
    """One way to do the work.

    name: unique in a workload. n_envs: environments of each member. learner: "ours", "sb3" (stable-baselines3) or
    "sbx" (its JAX sibling). part: the whole "iteration"; of ours also "environment", "rollout" or "update" alone.
    batched: a peer steps our vectorised environment instead of plain single ones under DummyVecEnv. n_members: P.
    horizon_len: steps of each environment per iteration; None: samples // n_envs. env, agent, network: options of
    `MarketVecEnv`, `PPOConfig` and `PolicySpec.of` beside the work's. counted: its operations are counted too.
    """

    name: str
    n_envs: int
    learner: str = "ours"
    part: str = "iteration"
    batched: bool = False
    n_members: int = 1
    horizon_len: int | None = None
    env: Mapping[str, Any] = field(default_factory=dict)
    agent: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)
    counted: bool = False

    def horizon(self, work: Work) -> int:
        """T, steps of each environment in one iteration."""
        return self.horizon_len or max(1, work.samples // self.n_envs)

    def steps(self, work: Work) -> int:
        """Environment steps of one iteration, all members together."""
        return self.horizon(work) * self.n_envs * self.n_members


def build_env(configuration: Configuration, work: Work, market: Market) -> MarketVecEnv:
    """The vectorised environment of a configuration.

    Raises:
        InputError: an option the environment does not have, or out of its range.
    """
    options = {"episode_length": work.episode_length, "seed": work.seed, **work.costs(), **configuration.env}
    members = configuration.n_members
    return MarketVecEnv(market, configuration.n_envs * members, n_members=members, **options)


def build_agent(
    configuration: Configuration, work: Work, env: MarketVecEnv, seeds: Sequence[int], **hyper: Any
) -> AgentPPO:
    """The PPO agent of a configuration, its normaliser fitted to the environment, compiled as for a long training.

    Args:
        seeds: one per member. hyper: hyper-parameters beside the work's and the configuration's.

    Raises:
        InputError: a value out of its range, or compile="on" where nothing can be compiled.
    """
    config = PPOConfig(
        horizon_len=configuration.horizon(work),
        update_epochs=work.update_epochs,
        num_minibatches=work.num_minibatches,
        **hyper,
        **configuration.agent,
    )
    spec = PolicySpec.of(env, **{"hidden": work.hidden, **configuration.network})
    agent = AgentPPO(spec, config, seeds, env.device)
    agent.policy.fit_normalizer(env)
    agent.compiler.plan(LONG_TRAINING)
    return agent
