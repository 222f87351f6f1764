"""A run without a study: which days are held out, that training does not see them, what is written, the gate."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from drl_agents.agents.registry import BUILT_IN
from drl_agents.deployment.bundle import load_bundle
from drl_agents.deployment.run_job import hold_out
from drl_agents.training.checkpoint import load_checkpoint
from drl_agents.training.commandline import run
from environments.data.source import load_bars
from environments.errors import InputError
from environments.market import Market

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--test-run", "--n-steps", "16", "--skip-posterior", "--quiet"]
DAILY = ["--data-source", "synthetic", "--synthetic-options", "n_bars=300,n_assets=2,timeframe=1d", *TINY]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_script_for_runs", ROOT / "scripts" / "train.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(script, capsys, tmp_path):
    """`call(*arguments)` -> (status, standard output, standard error); files go to tmp_path."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            run(script.options_of, script.main, [*arguments, "--logs", str(tmp_path)])
        return leaving.value.code or 0, *capsys.readouterr()

    return call


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


@pytest.mark.parametrize(("days", "message"), [(-1, "0 or more"), (400, "fewer than that are accepted")])
def test_days_that_are_not_there(days, message):
    with pytest.raises(InputError, match=message):
        hold_out(daily(), days, 1, 1)


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


def test_deploying_counts_every_look_at_the_held_out_days(call, tmp_path):
    for i in range(3):
        status, out, err = call(*DAILY, "--test-days", "50", "--deploy", "--seed", str(i), "--run", f"run{i}")
        assert status == 0 and ("the gate refused it" in out or "the gate passed it" in out), err
    # The same run judged once more is no further look.
    call(*DAILY, "--test-days", "50", "--deploy", "--seed", "0", "--run", "run0", "--resume")
    looks = [json.loads(line) for line in (tmp_path / "runs" / "holdout_looks.jsonl").read_text().splitlines()]
    assert len(looks) == 3 and len({look["bars"] for look in looks}) == 1
    report = json.loads((tmp_path / "runs" / "run2" / "report" / "report.json").read_text())
    assert report["facts"]["holdout_looks"] == 3 and report["facts"]["gate"]["checks"]
    audit = (tmp_path / "deployment" / "audit.jsonl").read_text()
    assert "run2" in audit


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
        (["--agent", "nobody"], "agent 'nobody': accepted are"),
        (["--network", "cnn"], "network='cnn': accepted are"),
        (["--hidden-dim", "8", "--hidden", "8"], "--hidden and --hidden-dim say the same"),
        (["--expanded", "--symbols", "SPY"], "--expanded names symbols of its own"),
        (["--cache-path", "x"], "--cache-path is for bars that are downloaded"),
        (["--deploy", "--test-days", "0"], "--deploy needs held-out days"),
        (["--network", "gru", "--n-heads", "2"], "has no option n_heads"),
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
