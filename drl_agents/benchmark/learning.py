"""Whether what is fast learns: every configuration against eager float32 on a market with a planted edge."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

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


@dataclass(frozen=True)
class Comparison:
    """Welch's t-test (Welch, 1947) of the mean of one sample against another's.

    difference: of the means. t, degrees: the statistic and its degrees of freedom (Welch-Satterthwaite). p: probability
    of a |t| this large if the means are the same.
    """

    difference: float
    t: float
    degrees: float
    p: float


def welch(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """Compare two samples of at least two values each.

        t = (mean a - mean b) / sqrt(s),  s = va + vb,  va = var(a) / n_a
        degrees = s^2 / (va^2 / (n_a - 1) + vb^2 / (n_b - 1))

    Where neither sample varies, t is 0 for equal means and infinite for others.
    """
    va, vb = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    difference, spread = statistics.fmean(a) - statistics.fmean(b), va + vb
    if spread == 0:
        t = 0.0 if difference == 0 else math.copysign(math.inf, difference)
        return Comparison(difference, t, len(a) + len(b) - 2.0, float(difference == 0))
    t = difference / math.sqrt(spread)
    degrees = spread**2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return Comparison(difference, t, degrees, two_sided_p(t, degrees))


def two_sided_p(t: float, degrees: float) -> float:
    """P(|T| >= |t|) for Student's T, by Simpson's rule over its density

        f(x) = c (1 + x^2 / v)^(-(v + 1) / 2),  c = Gamma((v + 1) / 2) / (sqrt(v pi) Gamma(v / 2)),

    substituting x = sqrt(v) tan(u), which makes it c sqrt(v) cos(u)^(v - 1) on a bounded range of u.
    """
    end = math.atan(abs(t) / math.sqrt(degrees))
    u = np.linspace(0.0, end, 2_001)
    density = np.cos(u) ** (degrees - 1)
    area = float(density[0] + density[-1] + 4 * density[1:-1:2].sum() + 2 * density[2:-1:2].sum()) * end / 2_000 / 3
    constant = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    return min(1.0, max(0.0, 1 - 2 * constant * area))


def quoted(device: torch.device) -> list[Configuration]:
    """The configurations whose speed is quoted: whole iterations of one member, those of the GPU workload on CUDA.

    Not a single environment, which has no target and would train for an hour.
    """
    names = ("gpu",) if device.type == "cuda" else ("iteration", "lookback")
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
        a row each: name, status ("compared", or "reference": it differs in nothing from it), returns and
        reference_returns (shares of the best), means, standard errors, Welch's t (None if infinite), degrees and p, and
        whether the two are the same within noise, p >= 0.01.
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
        reference = reference_of(configuration)
        same = _key(reference) == _key(configuration)
        own, other = returns(configuration), returns(reference)
        comparison = welch(own, other)
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
                "welch_t": comparison.t if math.isfinite(comparison.t) else None,
                "degrees": comparison.degrees,
                "p": comparison.p,
                "within_noise": comparison.p >= LEAST_P,
            }
        )
    return rows


def _key(configuration: Configuration) -> str:
    """What a configuration trains, whatever it is called."""
    options = sorted(configuration.env.items()), sorted(configuration.agent.items())
    return repr((configuration.n_envs, configuration.horizon_len, *options))
