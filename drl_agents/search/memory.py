"""How many trials fit a memory budget side by side, measured on small populations of the largest trial there can be.

The members of a population are alike, so its peak grows by the same number of bytes with each: with m members

    peak(m) = peak(2) + (m - 2) * (peak(4) - peak(2)) / 2

and a batch of K trials has K * folds_per_batch * n_seeds of them. What is kept once per bar for every member stops
growing where it would become too large (`networks.normalizer.MAX_TABLE`): the formula then says more than is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from drl_agents.search.config import TrialConfig
from drl_agents.search.members import population_agent
from drl_agents.search.objective import Workload, market_env
from drl_agents.search.space import config_from, space_of
from drl_agents.training.device import size_text
from drl_agents.training.memory import Sizes, measure
from drl_agents.training.memory_plan import HEADROOM
from environments.errors import InputError

FEW, MORE = 2, 4  # members of the populations that are measured
SMALLER_IS_LARGER = ("num_minibatches",)


@dataclass(frozen=True)
class PopulationPlan:
    """population: K. amp: the precision. predicted: bytes at the peak; reason: one line, what was chosen and why."""

    population: int
    amp: str
    predicted: float
    reason: str


def largest_config(agent: str, fixed: Mapping[str, Any] | None = None) -> TrialConfig:
    """The trial of the space that takes the most memory: every choice that is a number at its largest, but of the
    number of minibatches the smallest."""
    fixed = fixed or {}
    scheme, params = fixed.get("action", "trades"), {}
    for p in space_of(agent):
        if p.scheme not in (None, scheme) or p.name in fixed:
            continue
        numbers = all(isinstance(choice, int | float) for choice in p.choices)
        pick = min if p.name in SMALLER_IS_LARGER else max
        params[p.name] = p.low if not p.choices else pick(p.choices) if numbers else p.choices[0]
    return config_from(params, fixed, agent)


def population_peak(workload: Workload, config: TrialConfig, members: int) -> float:
    """Bytes at the peak of an iteration of `members` members, `measure`d: on CUDA of what is reserved, else of the
    tensors a run adds to the market's."""
    folds = [workload.folds[i % len(workload.folds)].train for i in range(members)]
    # Passes over the samples take time and no memory; what is compiled needs no more than what is not.
    own = config.with_agent(**{**workload.agent, "update_epochs": 1, "compile": "off"})
    hyper = own.hyper

    def build(sizes: Sizes):
        env = market_env(
            workload.env_name, workload.market, sizes.n_envs, n_members=members,
            segments=[list(fold) for fold in folds], **own.env,
        )  # fmt: skip
        agent = population_agent(env, [own] * members, range(members), workload.market.device)
        agent.policy.fit_normalizer(env)
        return agent, env

    sizes = Sizes(workload.n_envs * members, hyper.horizon_len, hyper.num_minibatches, hyper.amp)
    build(sizes)[1].close()  # what a market computes once for all its environments is no part of a run
    return float(max(measure(build, sizes, workload.market.device).values()))


def plan_population(
    workload: Workload, config: TrialConfig, most: int, budget: tuple[float, str], reduced: str | None = None
) -> PopulationPlan:
    """The most trials, up to `most`, that can be trained side by side within a budget, a tenth kept back.

    Where not even one can, the same in the reduced precision.

    Args:
        config: `largest_config`. budget: (bytes, where they come from), of `device.MemoryOptions.budget`.
        reduced: a precision that takes less memory, where the device has one.

    Raises:
        InputError: not one trial fits; names what it takes and the budget.
    """
    limit, source = budget
    each = workload.folds_per_batch * workload.n_seeds
    amp = str(workload.agent.get("amp", "off"))
    least = None
    for precision in [amp, *([reduced] if reduced and amp == "off" else [])]:
        own = config.with_agent(amp=precision)
        load = replace(workload, agent={**workload.agent, "amp": precision})
        few, more = (population_peak(load, own, members) for members in (FEW, MORE))
        growth = max(0.0, more - few) / (MORE - FEW)
        peaks = {k: max(few, few + (k * each - FEW) * growth) for k in range(1, most + 1)}
        fits = [k for k, peak in peaks.items() if peak * HEADROOM <= limit]
        least = min(least or peaks[1], peaks[1])
        if fits:
            chosen, name = max(fits), {"off": "float32"}.get(precision, precision)
            why = "more were not asked for" if chosen == most else f"one more would take {size_text(peaks[chosen + 1])}"
            said = f"planned {chosen} trials of {each} agents side by side, {name}: {size_text(peaks[chosen])}"
            reason = f"{said} of {size_text(limit)} ({source}); {why}"
            return PopulationPlan(chosen, precision, peaks[chosen], reason)
    raise InputError(
        f"memory: one trial of {each} agents takes up to {size_text(least)} and a tenth in reserve, the budget is "
        f"{size_text(limit)} ({source}); give fewer --n-envs, --n-steps or --folds-per-batch"
    )
