"""One run without a study: train, write a bundle, judge it on days it never saw, deploy it if that is asked for.

The last days are kept from training, their features from the normaliser too. Who trains once has searched nothing, so
there is no probability of back-test overfitting; but each look at the same held-out bars, whatever the run was called,
is a trial, and both the deflated Sharpe ratio and the bootstrap's limit count them all: they are noted in
<logs>/runs/holdout_looks.jsonl.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drl_agents.deployment.bundle import Bundle, load_bundle, save_bundle
from drl_agents.deployment.candidate import add_look, read_looks
from drl_agents.deployment.gate import Evidence, GateLimits, Verdict, judge
from drl_agents.deployment.health import keep_heldout
from drl_agents.deployment.registry import Registry, slot_of
from drl_agents.evaluation.backtest import backtest
from drl_agents.evaluation.baselines import hold_cash, hold_equal_weight
from drl_agents.evaluation.metrics import sharpe_ratio
from drl_agents.evaluation.posterior import posterior
from drl_agents.evaluation.posterior_plot import write_posterior
from drl_agents.evaluation.report import ReportPaths, write_report
from drl_agents.evaluation.result import BacktestResult
from drl_agents.evaluation.score import Score, composite_score, stretch_returns
from drl_agents.evaluation.splits import split_holdout
from drl_agents.training.record import RUN_RECORD, now, plain, versions
from drl_agents.training.train_job import TrainOutcome
from environments.errors import InputError
from environments.features import compute_features, ready_from
from environments.market import Market
from environments.market_env import MarketVecEnv
from environments.plugin import build_env

DAY = 86_400 * 10**9  # nanoseconds
LOOKS = "holdout_looks.jsonl"
WALK = 3  # bars of the shortest walk that has a Sharpe ratio: two returns
SHARE = 5  # at most this part of the bars is held out where no number of days was asked for


@dataclass(frozen=True)
class Split:
    """search: ranges to train on. window: the held-out bars."""

    search: tuple[tuple[int, int], ...]
    window: tuple[int, int]


@dataclass(frozen=True)
class Judgement:
    """What came of a run on its held-out days; late ones are None where they were not asked for. waits: it passed, and
    runs in the champion's shadow first."""

    bundle: Bundle
    model: BacktestResult
    holding: BacktestResult
    score: Score
    report: ReportPaths
    posterior: ReportPaths | None
    verdict: Verdict | None
    deployed: Path | None
    waits: bool = False


def hold_out(market: Market, test_days: int | None, lookback: int, decision_lag: int) -> Split | None:
    """Keep the last `test_days` days with bars (UTC) from training, and the bars whose orders would fill in them.

    test_days: None for 60, or fewer so that a fifth of the bars are the most, but 3 bars at least; 0 for none.

    Raises:
        InputError: fewer than 0 days, too few to walk, or so many that nothing is left to train on; the message says
            how many there are.
    """
    if test_days is not None and test_days < 0:
        raise InputError(f"--test-days {test_days}: 0 or more are accepted")
    if test_days == 0:
        return None
    first = ready_from(compute_features(market))
    segments = [(max(a, first), b) for a, b in market.segments() if b - max(a, first) >= 2]
    days = market.timestamps.cpu().numpy() // DAY
    bars = np.concatenate([days[a:b] for a, b in segments])
    kept = np.unique(bars)
    if test_days is None:
        newest = np.cumsum(np.unique(bars, return_counts=True)[1][::-1])  # bars of the last 1, 2, ... days
        enough, least = np.searchsorted(newest, bars.size // SHARE, "right"), 1 + np.searchsorted(newest, WALK)
        test_days = max(int(least), min(60, int(enough)))
    if test_days >= kept.size:
        raise InputError(f"--test-days {test_days}: the bars are of {kept.size} days, fewer than that are accepted")
    count = int((bars >= kept[-test_days]).sum())
    if count < WALK:
        raise InputError(f"--test-days {test_days}: {count} bars, and at least {WALK} are needed to judge a model")
    if count + lookback + decision_lag >= bars.size:
        raise InputError(
            f"lookback={lookback} and {count} held-out bars leave none of {bars.size} bars to train on: "
            "fewer --test-days, a shorter lookback or more bars are accepted"
        )
    search, held = split_holdout(segments, count, lookback + decision_lag)
    return Split(tuple(search), (held[0][0], held[-1][1]))


def judge_run(
    market: Market,
    outcome: TrainOutcome,
    split: Split,
    logs: Path,
    *,
    skip_posterior: bool = False,
    deploy: bool = False,
    limits: GateLimits | None = None,
) -> Judgement:
    """Judge a finished run on its held-out window; writes bundle, report and posterior into the run's folder.

    Raises:
        InputError: its environment is not one of a market's, which a bundle needs.
    """
    settings, folder = outcome.settings, outcome.settings.folder
    walk = {"segments": [split.window], "random_start": False, "episode_length": None}
    own = {**settings.env_options, **walk}
    own.pop("clock_groups", None)
    env = build_env(settings.env, market, 1, **own)
    if not isinstance(env, MarketVecEnv):
        raise InputError(f"environment {settings.env}: only models of a market's environments can be kept and judged")
    stamps = market.timestamps.cpu().numpy().astype("datetime64[ns]")
    facts = {
        "run": folder.name,
        "agent": settings.agent_name,
        "seed": settings.seed,
        "config": plain(vars(settings.agent)),
        "timesteps": outcome.result.iterations * settings.agent.horizon_len * settings.n_envs,
        "data": {
            "fingerprint": market.fingerprint,
            "holdout_bars": split.window[1] - split.window[0],
            "holdout_span": [str(stamps[bar])[:19] for bar in (split.window[0], split.window[1] - 1)],
        },
    }
    bundle = load_bundle(save_bundle(folder / "bundle", outcome.agent.policy, 0, env, settings.env, facts))
    # Through the bundle, as it would be run.
    walking = bundle.env(market, split.window)
    model = backtest(walking, bundle.decide, ["model"])[0]
    keep_heldout(bundle, model.returns)
    holding, cash = hold_equal_weight(walking), hold_cash(walking)
    score = _score(outcome, model)
    looks = note_look(logs / "runs" / LOOKS, market, split.window, bundle.id, model)
    verdict = deployed = None
    waits, registry = False, Registry(logs)
    if deploy:
        verdict, deployed = _deploy(market, bundle, split, model, holding, looks, registry, limits or GateLimits())
        waits = deployed is None and registry.challenger_id(slot_of(bundle.manifest["market"])) == bundle.id
    report = write_report(
        folder / "report",
        title=f"run {folder.name}: held-out days",
        model=model,
        baselines=[holding, cash],
        facts=plain(
            {
                **facts,
                "score": score.to_dict(),
                "holdout_looks": len(looks),
                "gate": None if verdict is None else verdict.to_dict(),
                "bundle": bundle.id,
                "versions": versions(),
            }
        ),
        synthetic=market.synthetic,
    )
    holding = holding.first(model.returns.size)  # a walk that ended in ruin has fewer bars
    paths = None
    if not skip_posterior and model.returns.size > 1:
        found = posterior(model, holding, seed=settings.seed)
        paths = write_posterior(
            folder / "report", title=f"run {folder.name}: held-out days", found=found, synthetic=market.synthetic
        )
    return Judgement(bundle, model, holding, score, report, paths, verdict, deployed, waits)


def note_look(path: Path, market: Market, window: tuple[int, int], bundle: str, result: BacktestResult) -> list[float]:
    """Note that a model was judged on these bars; the per-bar Sharpe ratios of all that were, NaN where undefined."""
    bars = f"{market.fingerprint}:{window[0]}-{window[1]}"
    found = {look["bundle"]: look["sharpe"] for look in read_looks(path) if look["bars"] == bars}
    if bundle not in found:
        found[bundle] = plain(sharpe_ratio(result.returns, 1.0))
        add_look(path, {"time": now(), "bars": bars, "bundle": bundle, "sharpe": found[bundle]})
    return [math.nan if value is None else value for value in found.values()]


def _deploy(
    market: Market,
    bundle: Bundle,
    split: Split,
    model: BacktestResult,
    holding: BacktestResult,
    looks: list[float],
    registry: Registry,
    limits: GateLimits,
) -> tuple[Verdict, Path | None]:
    """The gate with what a single run can show: no search was made, so nothing was overfitted by choosing.

    Judged without the registry's lock, as in `main_job.judge_and_decide`: a trader must not wait for back-tests.
    """
    late_env = bundle.env(market, split.window, decision_lag=model.decision_lag + 1)
    late, late_holder = backtest(late_env, bundle.decide, ["late"])[0], hold_equal_weight(late_env)
    slot = slot_of(bundle.manifest["market"])
    while True:
        champion = registry.champion(slot)
        rival = None
        if champion is not None and champion.id != bundle.id:
            rival = backtest(champion.env(market, split.window), champion.decide, ["champion"])[0]
        evidence = Evidence(
            candidate=model,
            late=late,
            seeds=[model],
            holder=holding,
            late_holder=late_holder,
            champion=rival,
            trial_sharpes=looks,
            search_bars=model.returns.size,
            pbo=None,
            looks=len(looks),
        )
        verdict = judge(evidence, limits)
        with registry.exclusive():
            if registry.champion_id(slot) == (champion and champion.id):
                return verdict, _decide(registry, bundle, verdict, champion, len(looks))


def _decide(registry: Registry, bundle: Bundle, verdict: Verdict, champion: Bundle | None, n_looks: int) -> Path | None:
    """Promote what passed, record what did not. Returns where the promoted bundle lies."""
    facts: dict[str, Any] = {"checks": verdict.to_dict()["checks"], "holdout_looks": n_looks}
    run = bundle.manifest["lineage"]["run"]
    if not verdict.passed:
        registry.refuse(bundle.id, run, verdict.reasons, facts)
        return None
    if champion is not None and champion.id == bundle.id:
        return champion.folder
    if registry.quarantined(bundle):
        registry.refuse(bundle.id, run, ["it was rolled back before, and is in quarantine"], facts)
        return None
    # Where the champion is being traded, the model runs in its shadow first.
    place, champion_now = registry.put_forward(bundle, facts)
    return place if champion_now else None


def _score(outcome: TrainOutcome, model: BacktestResult) -> Score:
    record = outcome.settings.folder / RUN_RECORD
    # A run that was done already has made no figures of its own: they are in its record.
    last = {name: values[0] for name, values in outcome.result.figures.items()}
    last = last or _figures(record, outcome.result.iterations)
    own = {name: last.get(name, math.nan) for name in ("explained_variance", "entropy", "approx_kl", "clip_fraction")}
    returns = model.returns
    return composite_score(
        stretch_returns(model.equity),
        np.log1p(returns[returns > -1]),
        model.bars_per_year,
        first_entropy=_figures(record, 1).get("entropy", math.nan),
        **own,
    )


def _figures(path: Path, iteration: int) -> dict[str, float]:
    """A run's figures of an iteration, the latest where it was made more than once; {} where it never was."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:
            continue  # torn by a kill
        if found.get("iteration") == iteration:
            return {name: value[0] for name, value in found.items() if isinstance(value, list) and value[0] is not None}
    return {}
