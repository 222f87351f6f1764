"""What is timed: one call of a competitor does one iteration, or one part of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from drl_agents.agents.compilation import Compiler
from drl_agents.agents.precision import why_slow
from drl_agents.benchmark.work import LONG_TRAINING, PARTS, Configuration, Work, build_agent, build_env
from environments.errors import InputError
from environments.market import Market
from environments.market_env import MarketVecEnv

ACTIONS = 16  # different random actions the environment alone is stepped with, over and over


class HardwareMissing(Exception):
    """A configuration is of something that this machine does not have; the message says what."""


@dataclass(frozen=True)
class Competitor:
    """One call makes `steps` environment steps. check: raises RuntimeError if what was done came to nothing.

    compiled: whether torch.compile was used (ours alone).
    """

    steps: int
    call: Callable[[], None]
    check: Callable[[], None]
    compiled: bool | None = None


def our_competitor(configuration: Configuration, work: Work, market: Market) -> Competitor:
    """AgentPPO over MarketVecEnv: the whole iteration or the part the configuration names.

    Raises:
        InputError: an unknown part, or options out of range.
        HardwareMissing: a precision that the device does not have.
    """
    if reason := why_slow(market.device, configuration.agent.get("amp", "off")):
        raise HardwareMissing(reason)
    env = build_env(configuration, work, market)
    if configuration.part == "environment":
        return _environment(env, configuration, work)
    agent = build_agent(configuration, work, env, [work.seed + p for p in range(configuration.n_members)])
    horizon = configuration.horizon(work)
    figures: dict[str, torch.Tensor] = {}

    def iteration() -> None:
        figures.update(agent.update(agent.explore_env(env, horizon)))

    def explore() -> None:
        rollout = agent.explore_env(env, horizon)
        figures["reward"] = rollout.reward

    def update() -> None:
        figures.update(agent.update(rollout))

    if configuration.part not in PARTS:
        raise InputError(f"part {configuration.part!r}: accepted are {', '.join(PARTS)}")
    rollout = agent.explore_env(env, horizon) if configuration.part == "update" else None
    call = {"iteration": iteration, "rollout": explore, "update": update}[configuration.part]

    def check() -> None:
        bad = [name for name, value in figures.items() if not bool(value.isfinite().all())]
        if bad or not figures:
            raise RuntimeError(f"{configuration.name}: {', '.join(bad) or 'nothing was done'} is not finite")

    return Competitor(configuration.steps(work), call, check, agent.compiler.active)


def _environment(env: MarketVecEnv, configuration: Configuration, work: Work) -> Competitor:
    size = (ACTIONS, env.n_envs, *env.single_action_space.shape)
    actions = (2 * torch.rand(size, generator=torch.Generator().manual_seed(work.seed)) - 1).to(env.device)
    horizon = configuration.horizon(work)
    compiler = Compiler(configuration.agent.get("compile", "auto"))
    compiler.plan(LONG_TRAINING)
    env.reset()

    @torch.no_grad()
    def walk() -> None:
        # As a rollout steps it: all random numbers first, then the function that may be compiled.
        advance, draws = compiler(env.advance), env.draws(horizon)
        for t in range(horizon):
            advance(actions[t % ACTIONS], draws[t])

    def check() -> None:
        equity = float(env.last_equity.mean())
        if not math.isfinite(equity) or equity == env.initial_cash:
            raise RuntimeError(f"{configuration.name}: nothing was traded, mean equity is {equity}")

    return Competitor(configuration.steps(work), walk, check, compiler.active)
