"""SHAC and PPO searched for as many seconds each, on real bars, under CPCV; writes shac_real.json.

    python -m tests.benchmarks.shac_real FOLDER_OF_BARS [--seconds 120] [--minutes 5] [--output FILE]

Each agent's study draws and judges trials, one after the other, until its CPU seconds are spent; the last is ended. The
best is refitted on all search bars with three seeds and walked once over the held-out fifth. Whichever way it comes out
is what is written. What is in the file already is not run again. The bars are not part of the project.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drl_agents.benchmark.machine import machine_facts
from drl_agents.deployment.candidate import refit
from drl_agents.deployment.job_plan import JobSettings, plan_bars
from drl_agents.evaluation.metrics import sharpe_ratio
from drl_agents.evaluation.overfitting import deflated_sharpe_of_returns
from drl_agents.search.objective import Workload
from drl_agents.search.place import StudyPlace
from drl_agents.search.study import open_study, run_study
from drl_agents.training.commandline import DataOptions
from environments.alpaca_env import default_env
from environments.files import write_json
from environments.market import Market

MEGA = "NVDA,TSLA,AMZN,META,GOOGL,AMD,NFLX,SHW"
COINS = "BTCUSDT,ETHUSDT,LTCUSDT,LINKUSDT,UNIUSDT,AAVEUSDT,SOLUSDT,AVAXUSDT"
FILES: dict[str, dict[str, Any]] = {
    "mega8_daily": {"file": "us_daily_dow30_mega8_2004_2021.parquet", "timeframe": "1d", "symbols": MEGA},
    # Its last four weeks.
    "crypto_5m": {
        "file": "crypto_5m_binance_2022_2023.parquet", "timeframe": "5m", "symbols": COINS, "start": "2023-09-01",
    },
}  # fmt: skip
SIZES = {"n_envs": 16, "timesteps": 20_000, "n_splits": 5, "test_groups": 2, "seed": 0}
ENV = {"episode_length": 500, "action": "weights"}
RUNS = [(name, agent) for name in FILES for agent in ("shac", "ppo")]


def load(folder: Path, name: str) -> Market:
    own = dict(FILES[name])
    return DataOptions(data_source="files", data=str(folder / own.pop("file")), **own).market()


def searched(market: Market, agent: str, seconds: float, folder: Path) -> dict[str, Any]:
    """One agent's study on one market, and what its best comes to on the held-out bars."""
    settings = JobSettings("real", agent=agent, env_options=ENV, logs=folder, **SIZES)
    plan = plan_bars(market, settings)
    load = Workload(
        market, tuple(plan.folds), default_env(market).__name__, settings.n_envs, settings.timesteps, len(plan.folds)
    )
    place = StudyPlace("real", folder)
    study = open_study(place, {"agent": agent, "fingerprint": market.fingerprint, "seed": settings.seed})
    began = time.process_time()
    run_study(
        study, place, load, n_trials=10_000, seed=settings.seed, fixed=ENV,
        stop=lambda: time.process_time() - began > seconds,
    )  # fmt: skip
    spent = time.process_time() - began
    candidate = refit(
        study, place, load, plan.search, plan.holdout, n_seeds=3, seed=settings.seed, lineage={"data": market.source}
    )
    found, year = candidate.statistics, market.bars_per_year
    finite = found.trial_sharpes[np.isfinite(found.trial_sharpes)]
    holder = candidate.baselines[0]
    return {
        "agent": agent,
        "search_cpu_seconds": spent,
        "trials": found.n_trials,
        "trials_without_a_sharpe": int(found.n_trials - finite.size),
        "best_mean_fold_sharpe": candidate.value,
        "median_trial_sharpe": float(np.median(finite)) * math.sqrt(year),
        "pbo": None if found.pbo.reason else found.pbo.pbo,
        "heldout_sharpe": sharpe_ratio(candidate.result.returns, year),
        "heldout_sharpe_of_three_seeds": [sharpe_ratio(own.returns, year) for own in candidate.seeds],
        "heldout_deflated_sharpe": deflated_sharpe_of_returns(candidate.result.returns, found.trial_sharpes),
        "heldout_sharpe_of_equal_weight": sharpe_ratio(holder.returns, year),
        "config": candidate.bundle.manifest["lineage"]["config"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bars", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("shac_real.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(options.output.read_text()) if options.output.exists() else {"runs": []}
    runs = [run for run in known["runs"] if run["budget_seconds"] == options.seconds]
    done = {(run["bars"], run["agent"]) for run in runs}
    todo = [run for run in RUNS if run not in done]
    until, longest = time.monotonic() + 60 * options.minutes, 0.0
    while todo and time.monotonic() + longest < until:
        name, agent = todo.pop(0)
        began = time.monotonic()
        market = load(options.bars, name)
        with tempfile.TemporaryDirectory() as folder:
            row = searched(market, agent, options.seconds, Path(folder))
        facts = {"bars": name, "n_bars": market.n_bars, "fingerprint": market.fingerprint}
        runs.append({**facts, "budget_seconds": options.seconds, **row})
        write_json(
            options.output, {"machine": machine_facts(torch.device("cpu")), "sizes": {**SIZES, **ENV}, "runs": runs}
        )
        longest = max(longest, time.monotonic() - began)
        print(f"{name} {agent}: {row['trials']} trials, held-out Sharpe {row['heldout_sharpe']:.2f}, {longest:.0f} s")
    print(f"{len(todo)} of {len(RUNS)} runs are left")


if __name__ == "__main__":
    main()
