"""How often the gate lets noise through, and how often it lets an edge through: the whole way, on made-up markets.

Every market goes through what the main job does: a study over trials, the best one refitted with several seeds, the
held-out bars, the gate with its default limits. Nothing of it is replaced; only the markets and budgets are small, and
the bars weekly, so that the years a Sharpe ratio needs to be told from luck are few bars to walk. A study of noise
has 2 to 5 trials by turns, since few are where the deflated Sharpe ratio deflates little; one of an edge has 6.

    noise: prices whose past says nothing of their future, three kinds by turns: without drift, with a drift that makes
           holding worth a Sharpe ratio of about 0.8, and beside a persistent signal that leads nothing
    edge:  a visible signal leads the returns just so much that the best rule found earns an annual Sharpe ratio of 3
           after costs (`best_rule` measures it, on bars of its own, in the books that models are judged in)
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from drl_agents.deployment.candidate import pass_gate, refit
from drl_agents.deployment.gate import GateLimits
from drl_agents.deployment.job_plan import JobSettings, data_facts, plan_bars
from drl_agents.search.objective import Workload
from drl_agents.search.results import best_trial
from drl_agents.search.study import StudyPlace, open_study, run_study
from environments.alpaca_env import default_env
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market
from environments.plugin import build_env

COMMON = {"n_assets": 1, "sigma": 0.05, "timeframe": "7d", "start": "2010-01-01", "asset_class": "crypto"}
NOISES: dict[str, dict[str, Any]] = {
    "no drift": {"kind": "gbm", "drift": 0.0},
    "drift": {"kind": "gbm", "drift": 0.3},
    "idle signal": {"kind": "signal", "ic": 0.0, "rho": 0.9},
}
EDGE: dict[str, Any] = {"kind": "signal", "ic": 0.745, "rho": 0.9}
FEATURES = ("return_1", "return_5", "range")  # and the signal where there is one: few bars teach few inputs
KINDS = ("noise", "edge")
TRIALS = {"noise": (2, 3, 4, 5), "edge": (6,)}  # by turns
Z95 = 1.959963984540054  # Phi^-1(0.975)


@dataclass(frozen=True)
class Pipeline:
    """Sizes of the markets and budgets of the main job on each; see `JobSettings`. bars: weekly, held-out included."""

    bars: int = 1_500
    holdout_bars: int = 350
    n_envs: int = 24
    timesteps: int = 12_288
    n_splits: int = 2
    test_groups: int = 1
    n_seeds: int = 3
    episode_length: int = 150


def world(kind: str, index: int) -> tuple[str, dict[str, Any]]:
    """The name and the synthetic options of market `index` of `kind`, "noise" or "edge"."""
    if kind not in KINDS:
        raise InputError(f"kind {kind!r}: accepted are {', '.join(KINDS)}")
    if kind == "edge":
        return "edge", {**COMMON, **EDGE}
    name = list(NOISES)[index % len(NOISES)]
    return name, {**COMMON, **NOISES[name]}


def judge_market(kind: str, index: int, pipeline: Pipeline) -> dict[str, Any]:
    """Take one made-up market through study, refit and gate; the same arguments give the same verdict.

    Returns:
        kind, index, world, trials, passed, failed (names of the checks that did not pass), checks {name: value},
        seconds: JSON-able.
    """
    began = time.monotonic()
    name, options = world(kind, index)
    seed = 2 * index + (kind == "edge")  # no two markets share their random numbers
    market = Market.from_bars(load_bars("synthetic", options={**options, "n_bars": pipeline.bars}, seed=seed))
    trials = TRIALS[kind][index % len(TRIALS[kind])]
    with tempfile.TemporaryDirectory() as folder:
        settings = JobSettings(
            "calibration", n_trials=trials, n_envs=pipeline.n_envs, timesteps=pipeline.timesteps,
            n_splits=pipeline.n_splits, test_groups=pipeline.test_groups, holdout_bars=pipeline.holdout_bars,
            n_seeds=pipeline.n_seeds, seed=seed, logs=Path(folder),
            env_options={
                "episode_length": pipeline.episode_length, "lookback": 1, "action": "signal_size", "threshold": 0.0,
                "features": [*FEATURES, *market.extra_names],
            }, compile="off",
        )  # fmt: skip
        plan = plan_bars(market, settings)
        workload = Workload(
            market, tuple(plan.folds), default_env(market).__name__, settings.n_envs, settings.timesteps,
            len(plan.folds), settings.seeds, {"amp": settings.amp, "compile": settings.compile},
        )  # fmt: skip
        place = StudyPlace(settings.study_name, Path(folder) / settings.study_name)
        study = open_study(place, {})
        run_study(
            study, place, workload, n_trials=trials, seed=seed, population=trials, fixed=settings.fixed()
        )  # fmt: skip
        try:
            best_trial(study)
        except InputError:  # no trial ran to its end: there is nothing to deploy
            passed, failed, checks = False, ["no complete trial"], {}
        else:
            candidate = refit(
                study, place, workload, plan.search, plan.holdout,
                n_seeds=settings.n_seeds, seed=seed, lineage={"data": data_facts(market, plan)},
            )  # fmt: skip
            verdict = pass_gate(candidate, None, workload, GateLimits())
            passed, failed = verdict.passed, [check.name for check in verdict.checks if not check.passed]
            checks = {
                check.name: None if math.isnan(check.value) else round(check.value, 6) for check in verdict.checks
            }
    return {
        "kind": kind, "index": index, "world": name, "trials": trials, "passed": passed, "failed": failed,
        "checks": checks, "seconds": round(time.monotonic() - began, 2),
    }  # fmt: skip


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The 95% score interval of a proportion.

        (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n),   p = successes / n

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA, 1927.

    Raises:
        InputError: no draws, or more successes than draws.
    """
    if not 0 <= successes <= n or n < 1:
        raise InputError(f"{successes} of {n}: at least one draw, and no more successes than draws, are accepted")
    p = successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def summary(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Rates of deployment by kind, world and number of trials, and how often each check failed."""
    lines = list(lines)
    result: dict[str, Any] = {}
    for kind in KINDS:
        own = [line for line in lines if line["kind"] == kind]
        if not own:
            continue
        by: dict[str, Any] = {}
        for field in ("world", "trials"):
            values = sorted({line[field] for line in own})
            by[f"by_{field}"] = {str(v): _rate([line for line in own if line[field] == v]) for v in values}
        names = sorted({name for line in own for name in line["failed"]})
        failed = {name: sum(name in line["failed"] for line in own) for name in names}
        result[kind] = {**_rate(own), **by, "failed": failed}
    return result


def _rate(lines: list[Mapping[str, Any]]) -> dict[str, Any]:
    deployed = sum(line["passed"] for line in lines)
    low, high = wilson(deployed, len(lines))
    return {
        "markets": len(lines),
        "deployed": deployed,
        "rate": round(deployed / len(lines), 4),
        "interval_95": [round(low, 4), round(high, 4)],
    }


@torch.no_grad()
def best_rule(options: Mapping[str, Any], windows: int = 64, bars: int = 200, seed: int = 999_983) -> dict[str, Any]:
    """The highest annual Sharpe ratio after costs among rules that read the planted signal s of one asset.

    A rule wants to hold the share clip(gain (s - threshold), 0, 1) of its account, and trades where that is further
    than `band` from what it holds, or 0. All are walked at once, in the environment models are judged in, through
    `windows` windows of `bars` bars.

    Returns:
        sharpe, its standard_error (Lo, 2002, at these many bars), bars walked, gain, threshold, band.
    """
    made = {**COMMON, **options, "n_bars": windows * bars, "start": "1700-01-01"}  # as long as time stamps allow
    market = Market.from_bars(load_bars("synthetic", options=made, seed=seed))
    rules = list(itertools.product((0.15, 0.2, 0.3, 0.5, 50.0), (-0.75, -0.5, -0.25, 0.0), (0.1, 0.2, 0.3, 0.5)))
    # The first bars of the market are left out: some features need that many to be known.
    own = [(max(i * bars, bars // 2), (i + 1) * bars) for i in range(windows)]
    env = build_env(
        default_env(market).__name__, market, windows * len(rules), n_members=len(rules), segments=[own] * len(rules),
        random_start=False, episode_length=None, max_trade=1.0,
    )  # fmt: skip
    gain, threshold, band = (torch.tensor(x).repeat_interleave(windows) for x in zip(*rules, strict=True))
    column = env.features.names.index("signal")
    observation, before = env.reset(), env.equity.clone()
    total, square, count = (torch.zeros(env.n_envs, dtype=torch.float64) for _ in range(3))
    alive = torch.ones(env.n_envs, dtype=torch.bool)
    for _ in range(int((env.stop - env.bar).max()) - 1):
        held = observation.state[:, 1]
        target = (gain * (env.rows[observation.bar, column] - threshold)).clamp(0, 1)
        move = target - held
        trades = (move.abs() > band) | ((target == 0) & (held > 0))
        step = env.step(torch.where(trades, move, 0.0).unsqueeze(1))
        change = (env.last_equity / before - 1).double() * alive
        total, square, count = total + change, square + change.square(), count + alive
        observation, before = step.observation, env.equity.clone()
        alive = alive & ~(step.terminated | step.truncated)
    total, square, count = (x.view(len(rules), windows).sum(1) for x in (total, square, count))
    mean = total / count
    spread = (square / count - mean.square()).sqrt()
    sharpe = torch.where(spread > 0, mean / spread, -torch.inf)  # a rule that never trades is no rule
    best = int(sharpe.argmax())
    year, n = market.bars_per_year, float(count[best])
    names = ("gain", "threshold", "band")
    return {
        "sharpe": round(float(sharpe[best]) * math.sqrt(year), 3),
        "standard_error": round(math.sqrt((1 + float(sharpe[best]) ** 2 / 2) / n * year), 3),
        "bars": int(n),
        **dict(zip(names, rules[best], strict=True)),
    }


def read_lines(path: Path, pipeline: Pipeline) -> list[dict[str, Any]]:
    """The markets of `pipeline` already judged into `path`; a line cut short by a kill is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["pipeline"] == asdict(pipeline):
            lines.append(line)
    return lines
