"""Whether what is fast learns: every configuration against eager float32 on a market with a planted edge."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from drl_agents.agents.precision import why_slow
from drl_agents.benchmark.paired import paired
from drl_agents.benchmark.work import Configuration, Work, build_agent
from drl_agents.benchmark.workloads import EAGER, WORKLOADS
from drl_agents.evaluation.backtest import backtest
from environments.data.source import load_bars
from environments.market import Market
from environments.market_env import MarketVecEnv

SPLIT, END = 9_000, 12_000
LEAST_P = 0.01
EDGE = {"kind": "signal", "n_bars": END, "n_assets": 1, "sigma": 0.01, "ic": 0.2, "rho": 0.9}


def reference_of(configuration: Configuration) -> Configuration:
    """The same work done eagerly in float32: without compilation, mixed precision and clock groups."""
    env = {name: value for name, value in configuration.env.items() if name != "clock_groups"}
    agent = {**configuration.agent, **EAGER}
    return replace(configuration, name=f"{configuration.name}: eager fp32", env=env, agent=agent)


def learned_return(
    configuration: Configuration, seed: int, work: Work, iterations: int = 60, device: torch.device | str = "cpu"
) -> float:
    """Train on a market with a visible signal, then walk bars that were not trained on.

    The signal leads the next bar's return (`environments.data.synthetic.signal`); trading is free. The learning rate is
    1e-3 and gamma 0.9, all else is the configuration's and the work's.

    Args:
        seed: of the market, the networks and the noise.

    Returns:
        log growth of equity over the test bars, over that of the best policy: all in where the signal is positive, all
        out elsewhere. 1 is the best there is, 0 is cash.

    Raises:
        RuntimeError: it is not finite, or the best policy loses.
    """
    torch.compiler.reset()  # or compilations of earlier seeds would count against this one's limit
    market = Market.from_bars(load_bars("synthetic", options=EDGE, seed=seed), device)
    free = replace(work, commission_bps=0.0).costs()
    own = {**free, "max_trade": 1.0, "reward": "log_return"}
    options = {"episode_length": work.episode_length, **own, **configuration.env}
    env = MarketVecEnv(market, configuration.n_envs, segments=[(0, SPLIT)], seed=seed, **options)
    agent = build_agent(configuration, work, env, (seed,), learning_rate=1e-3, gamma=0.9)
    for _ in range(iterations):
        agent.update(agent.explore_env(env, agent.config.horizon_len))

    walked = {"lookback": env.lookback, **own}
    walk = MarketVecEnv(market, 2, segments=[(SPLIT, END)], random_start=False, episode_length=None, **walked)
    newest = (env.lookback - 1) * walk.rows.shape[1] + walk.features.names.index("signal")

    decide = agent.decide

    def both(x: torch.Tensor) -> torch.Tensor:
        best = torch.where(x[:, 1:, newest : newest + 1] > 0, 1.0, -1.0)
        return torch.cat([decide(x[:, :1]).float(), best], dim=1)

    learned, most = (math.log(result.equity[-1] / walk.initial_cash) for result in backtest(walk, both))
    if not (math.isfinite(learned) and most > 0):
        raise RuntimeError(f"{configuration.name}, seed {seed}: log growth {learned}, the best policy's {most}")
    return learned / most


def quoted(device: torch.device) -> list[Configuration]:
    """The configurations whose speed is quoted: whole iterations of one member, those of the GPU workload on CUDA.

    Not a single environment, which has no target and would train for an hour.
    """
    names = ("gpu",) if device.type == "cuda" else ("iteration", "lookback", "transformer")
    own = [c for name in names for c in WORKLOADS[name].configurations]
    return [c for c in own if c.learner == "ours" and c.part == "iteration" and c.n_members == 1 and c.n_envs > 1]


def learning_results(
    configurations: Sequence[Configuration],
    seeds: Sequence[int],
    work: Work,
    iterations: int,
    device: torch.device,
    tell: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Each configuration's returns over `seeds` (two at least) beside those of its reference.

    Returns:
        a row each: name, status ("compared"; "reference": it differs in nothing from it; "missing": the machine lacks
        what it needs, the reason is all that follows), returns and
        reference_returns (shares of the best), means, standard errors; the mean difference with its interval, the
        paired t (None if infinite), its degrees and p, since a seed gives both the same market, first weights and
        noise; and whether the two are the same within noise, p >= 0.01: then the interval of 99% has 0 in it.
    """
    known: dict[str, list[float]] = {}

    def returns(configuration: Configuration) -> list[float]:
        key = _key(configuration)
        if key not in known:
            known[key] = [learned_return(configuration, seed, work, iterations, device) for seed in seeds]
            tell(f"{configuration.name}: {statistics.fmean(known[key]):.3f} of the best return")
        return known[key]

    rows = []
    for configuration in configurations:
        if reason := why_slow(device, configuration.agent.get("amp", "off")):
            rows.append({"name": configuration.name, "status": "missing", "reason": reason})
            continue
        reference = reference_of(configuration)
        same = _key(reference) == _key(configuration)
        own, other = returns(configuration), returns(reference)
        comparison = paired(own, other, 1 - LEAST_P)
        rows.append(
            {
                "name": configuration.name,
                "status": "reference" if same else "compared",
                "returns": own,
                "reference_returns": other,
                "mean": statistics.fmean(own),
                "standard_error": statistics.stdev(own) / math.sqrt(len(own)),
                "reference_mean": statistics.fmean(other),
                "reference_standard_error": statistics.stdev(other) / math.sqrt(len(other)),
                "difference": comparison.difference,
                "difference_interval": list(comparison.interval),
                "confidence": 1 - LEAST_P,
                "paired_t": comparison.t if math.isfinite(comparison.t) else None,
                "degrees": comparison.degrees,
                "p": comparison.p,
                "within_noise": comparison.p >= LEAST_P,
            }
        )
    return rows


def _key(configuration: Configuration) -> str:
    """What a configuration trains, whatever it is called."""
    parts = (configuration.env, configuration.agent, configuration.network)
    sizes = configuration.n_envs, configuration.n_members, configuration.horizon_len
    return repr((*sizes, *(sorted(options.items()) for options in parts)))
