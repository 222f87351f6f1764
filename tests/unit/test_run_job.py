"""A run without a study: which days are held out, that training does not see them, what is written, the gate."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from drl_agents.agents.registry import BUILT_IN
from drl_agents.deployment.bundle import load_bundle
from drl_agents.deployment.candidate import read_looks
from drl_agents.deployment.gate import Verdict
from drl_agents.deployment.main_job import paper_trade
from drl_agents.deployment.registry import Registry
from drl_agents.deployment.run_job import hold_out
from drl_agents.evaluation.backtest import backtest
from drl_agents.training.checkpoint import load_checkpoint
from drl_agents.training.commandline import run
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market
from scripts import backtest as backtest_script
from scripts import train as train_script
from tests.reference.command_line import call_script

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--test-run", "--n-steps", "16", "--skip-posterior", "--quiet"]
DAILY = ["--data-source", "synthetic", "--synthetic-options", "n_bars=300,n_assets=2,timeframe=1d", *TINY]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def call(capsys, tmp_path):
    """`call(*arguments)` of scripts/train.py -> (status, standard output, standard error); files go to tmp_path."""
    return lambda *arguments: call_script(train_script, [*arguments, "--logs", str(tmp_path)], capsys)


def daily(n_bars: int = 300) -> Market:
    return Market.from_bars(
        load_bars("synthetic", options={"n_bars": n_bars, "n_assets": 2, "timeframe": "1d"}, seed=0)
    )


def test_the_last_days_are_held_out():
    market = daily()
    split = hold_out(market, 30, lookback=4, decision_lag=2)
    assert split.window == (270, 300)
    assert (
        split.search[-1][1] == 270 - 6
    )  # less the bars whose orders would fill in the window, or that it looks back to
    assert split.search[0][0] > 0  # features need bars before the first
    assert hold_out(market, 0, 1, 1) is None


def test_days_are_days_whatever_the_bars():
    market = Market.from_bars(
        load_bars("synthetic", options={"n_bars": 2000, "n_assets": 1, "timeframe": "1h"}, seed=0)
    )
    split = hold_out(market, 3, 1, 1)
    stamps = pd.DatetimeIndex(market.timestamps.numpy()[split.window[0] : split.window[1]])
    assert stamps.normalize().nunique() == 3 and stamps[0].hour == 0
    asked_nothing = hold_out(market, None, 1, 1)
    held = asked_nothing.window[1] - asked_nothing.window[0]
    assert 0.1 * market.n_bars < held <= 0.2 * market.n_bars  # 60 days would be more than a fifth


@pytest.mark.parametrize(
    ("days", "message"),
    [(-1, "0 or more"), (400, "fewer than that are accepted"), (2, "2 bars, and at least 3 are needed")],
)
def test_days_that_are_not_there(days, message):
    with pytest.raises(InputError, match=message):
        hold_out(daily(), days, 1, 1)


def test_few_bars_hold_out_as_many_as_can_be_judged():
    market = daily(45)
    window = hold_out(market, None, 1, 1).window
    assert window == (42, 45)


def test_training_sees_nothing_of_the_held_out_days(call, tmp_path):
    """Other prices in the held-out days: the same weights and the same normaliser, bit for bit."""
    frame = load_bars("synthetic", options={"n_bars": 300, "n_assets": 2, "timeframe": "1d"}, seed=0).frame
    changed = frame.copy()
    last = changed["timestamp"] >= np.sort(changed["timestamp"].unique())[-40]
    changed.loc[last, ["open", "high", "low", "close"]] *= 3.0
    for name, bars in (("one", frame), ("two", changed)):
        bars.to_parquet(tmp_path / f"{name}.parquet")
        status, _, err = call(
            "--data", str(tmp_path / f"{name}.parquet"), "--asset-class", "crypto", "--test-days", "40", "--run", name,
            *TINY,
        )  # fmt: skip
        assert status == 0, err
    states = [load_checkpoint(tmp_path / "runs" / name / "checkpoint.pt")["agent"]["policy"] for name in ("one", "two")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    reports = [json.loads((tmp_path / "runs" / n / "report" / "report.json").read_text()) for n in ("one", "two")]
    assert reports[0]["model"] != reports[1]["model"]


def test_what_a_run_leaves(call, tmp_path):
    arguments = [a for a in DAILY if a not in ("--skip-posterior", "--quiet")]
    status, out, err = call(*arguments, "--test-days", "50")
    assert status == 0, err
    folder = tmp_path / "runs" / "train"
    assert load_bundle(folder / "bundle").manifest["lineage"]["data"]["holdout_bars"] == 50
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["title"].startswith("SYNTHETIC") and report["facts"]["gate"] is None
    assert set(report["facts"]["score"]["parts"]) >= {"entropy ratio", "explained variance"}
    assert json.loads((folder / "report" / "posterior.json").read_text())["measures"]["sharpe"]["bars"] == 49
    for name in ("report.png", "posterior.png"):
        assert (folder / "report" / name).stat().st_size > 10_000
    assert "composite score" in out and "What selects a model is a study's objective" in out


def test_a_run_that_was_done_already_has_the_same_score(call, tmp_path):
    """As after a kill between training and judging: the last figures are read from the run's record."""
    report = tmp_path / "runs" / "train" / "report" / "report.json"
    scores = []
    for more in ([], ["--resume"]):
        status, out, err = call(*DAILY, "--test-days", "50", *more)
        assert status == 0 and ("nothing left to do" in out) == bool(more), err
        scores.append(json.loads(report.read_text())["facts"]["score"])
    assert scores[0] == scores[1]
    known = {name: part["value"] for name, part in scores[1]["parts"].items()}
    assert known["explained variance"] is not None and known["entropy ratio"] is not None


def test_a_model_that_is_ruined_is_reported(call, tmp_path):
    """Its walk ends early; so do the back-test of its bundle, and the comparison with a trader, which trades on."""
    own = ["--env-options", "ruin=0.995,commission_bps=100", "--test-days", "50", "--deploy"]
    status, out, err = call(*[a for a in DAILY if a != "--skip-posterior"], *own)
    assert status == 0 and "the gate refused it" in out, err
    folder = tmp_path / "runs" / "train"
    report = json.loads((folder / "report" / "report.json").read_text())
    assert "ended in ruin after" in report["title"]
    assert {baseline["end"] for baseline in report["baselines"]} == {report["model"]["end"]}
    bundle, market = load_bundle(folder / "bundle"), daily()
    result = backtest(bundle.env(market, (250, 300)), bundle.decide)[0]
    paper, difference = paper_trade(SimpleNamespace(bundle=bundle, window=(250, 300), result=result), market, folder)
    assert result.equity.size < paper.equity.size == 50 and difference < 1e-9
    with pytest.raises(SystemExit) as left:
        arguments = ["--bundle", str(folder / "bundle"), *DAILY[:4], "--out", str(tmp_path / "again")]
        run(backtest_script.Options, backtest_script.main, arguments)
    report = json.loads((tmp_path / "again" / "report.json").read_text())
    assert not left.value.code and "of run train" in report["title"]


def test_an_environment_whose_models_cannot_be_judged_is_trained_on_all_bars(call, tmp_path):
    status, _, err = call(*DAILY, "--env", "CryptoEnvAlpaca")
    assert status == 0 and (tmp_path / "runs" / "train" / "checkpoint.pt").exists(), err
    assert not (tmp_path / "runs" / "train" / "report").exists()


def test_deploying_counts_every_look_at_the_held_out_days(call, tmp_path):
    for i in range(3):
        status, out, err = call(*DAILY, "--test-days", "50", "--deploy", "--seed", str(i), "--run", f"run{i}")
        assert status == 0 and ("the gate refused it" in out or "the gate passed it" in out), err
    # The same run judged once more is no further look, and a line that a kill cut short is none.
    with (tmp_path / "runs" / "holdout_looks.jsonl").open("a") as file:
        file.write('{"time": "2026')
    call(*DAILY, "--test-days", "50", "--deploy", "--seed", "0", "--run", "run0", "--resume")
    looks = read_looks(tmp_path / "runs" / "holdout_looks.jsonl")
    assert len(looks) == 3 and len({look["bars"] for look in looks}) == 1
    report = json.loads((tmp_path / "runs" / "run2" / "report" / "report.json").read_text())
    assert report["facts"]["holdout_looks"] == 3 and report["facts"]["gate"]["checks"]
    audit = (tmp_path / "deployment" / "audit.jsonl").read_text()
    assert "run2" in audit


def test_a_run_is_judged_without_the_registrys_lock_and_quarantine_is_told(call, tmp_path, monkeypatch):
    """A trader that must roll back does not wait for back-tests; what was rolled back is refused after its report."""
    from drl_agents.deployment import run_job

    registry, free = Registry(tmp_path), []

    def passes(evidence, limits):
        registry.folder.mkdir(exist_ok=True)
        with (registry.folder / "promotion.guard").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free.append(evidence.champion is not None)
        return Verdict(())

    monkeypatch.setattr(run_job, "judge", passes)
    for i in range(2):
        status, out, err = call(*DAILY, "--test-days", "50", "--deploy", "--seed", str(i), "--run", f"run{i}")
        assert status == 0 and "the gate passed it; deployed to" in out, err
    assert free == [False, True]
    with registry.exclusive():
        registry.roll_back(registry.newest_slot(), ["by hand"], {})
    report = tmp_path / "runs" / "run1" / "report" / "report.json"
    report.unlink()
    status, out, err = call(*DAILY, "--test-days", "50", "--deploy", "--seed", "1", "--run", "run1", "--resume")
    assert status == 0 and "it was rolled back, and is in quarantine" in out and report.exists(), err
    assert registry.audit.entries()[-1]["event"] == "refused"


def test_without_preprocessing_features_are_as_they_are(call, tmp_path):
    status, _, err = call(*DAILY, "--no-preprocessing", "--test-days", "0")
    assert status == 0, err
    policy = load_checkpoint(tmp_path / "runs" / "train" / "checkpoint.pt")["agent"]["policy"]
    assert (policy["row_normalizer.mean"] == 0).all() and (policy["row_normalizer.std"] == 1).all()


@pytest.mark.parametrize("network", ["mlp", "gru", "transformer", "lightweight"])
def test_every_network_runs_through(call, tmp_path, network):
    status, _, err = call(*DAILY, "--network", network, "--hidden-dim", "8", "--test-days", "50")
    assert status == 0, err
    assert load_bundle(tmp_path / "runs" / "train" / "bundle").policy.spec.network == network


@pytest.mark.parametrize("agent", sorted(BUILT_IN))
def test_every_agent_runs_through(call, tmp_path, agent):
    scheme = ["--env-options", "action=regimes"] if agent == "dqn" else []
    status, _, err = call(*DAILY, "--agent", agent, "--test-days", "50", *scheme)
    assert status == 0, err
    assert (tmp_path / "runs" / "train" / "report" / "report.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "../elsewhere"], "--run '../elsewhere': the name of a folder in <logs>/runs"),
        (["--agent", "nobody"], "agent 'nobody': accepted are"),
        (["--network", "cnn"], "network='cnn': accepted are"),
        (["--hidden-dim", "8", "--hidden", "8"], "--hidden and --hidden-dim say the same"),
        (["--expanded", "--symbols", "SPY"], "--expanded names symbols of its own"),
        (["--expanded", "--data-source", "alpaca"], "--expanded downloads from Alpaca: give --start"),
        (["--cache-path", "x"], "--cache-path is for bars that are downloaded"),
        (["--deploy", "--test-days", "0"], "--deploy needs held-out days"),
        (["--env", "CryptoEnvAlpaca", "--test-days", "50"], "its models cannot be kept and judged"),
        (["--network", "gru", "--n-heads", "2"], "has no option n_heads"),
        (["--env-options", "lookback=four"], "lookback=four: accepted is a whole number"),
        (["--agent", "a2c", "--batch-size", "32"], "agent a2c does not divide its rollouts into minibatches"),
    ],
)
def test_refused_in_one_line(call, tmp_path, arguments, message):
    status, out, err = call(*DAILY, *arguments)
    assert (status, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and message in err, err


def test_a_file_of_options(call, tmp_path):
    text = "agent: a2c\ntest_days: 50\nlearning_rate: 1e-3\nnetwork: mlp\nhidden: [8]\ntest_run: true\n"
    text += "synthetic_options: n_bars=300,n_assets=2,timeframe=1d\ndata_source: synthetic\nskip_posterior: true\n"
    (tmp_path / "train.yaml").write_text(text)
    status, _, err = call("--config", str(tmp_path / "train.yaml"), "--learning-rate", "2e-3", "--run", "yaml")
    assert status == 0, err
    facts = load_checkpoint(tmp_path / "runs" / "yaml" / "checkpoint.pt")["record"]["facts"]
    assert facts["agent_name"] == "a2c" and facts["agent"]["learning_rate"] == 2e-3
    (tmp_path / "train.yaml").write_text("learning_rat: 1e-3\n")
    status, _, err = call("--config", str(tmp_path / "train.yaml"))
    assert status == 2 and "learning_rat is no option; the nearest is learning_rate" in err
