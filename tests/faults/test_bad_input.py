"""A user's mistake: exit status 2, one line that names the culprit, no traceback, and nothing left behind."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from drl_agents.deployment.bundle import MANIFEST, WEIGHTS, load_bundle
from drl_agents.training.commandline import run

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
MARKET = "--data-source synthetic --synthetic-options n_bars=300".split()
SMALL = "--n-trials 1 --n-envs 2 --timesteps 1 --n-splits 2 --test-groups 1 --n-seeds 1 --episode-length 50".split()


pytestmark = pytest.mark.usefixtures("one_thread")


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"script_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Caller:
    """Runs a command line in this process: (status, standard output, standard error)."""

    def __init__(self, capsys, logs: Path) -> None:
        self.capsys, self.logs = capsys, logs

    def __call__(self, name: str, *arguments: str) -> tuple[int, str, str]:
        module = script(name)
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            run(module.Options, module.main, [*arguments, "--logs", str(self.logs)])
        out, err = self.capsys.readouterr()
        return leaving.value.code or 0, out, err

    def refused(self, name: str, *arguments: str, says: tuple[str, ...], left: bool = False) -> str:
        """The one line; all of `says` are in it. left: whether something may have been there before."""
        before = everything(self.logs)
        status, out, err = self(name, *arguments)
        assert status == 2, (status, err)
        assert err.count("\n") == 1 and err.startswith("error: "), err
        assert "Traceback" not in err + out and out == ""
        for part in says:
            assert part in err, (part, err)
        assert everything(self.logs) == before, "something was written"
        assert left or not before
        return err


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def call(capsys, tmp_path) -> Caller:
    return Caller(capsys, tmp_path / "logs")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The logs of a main job that ended."""
    module, logs = script("optimize"), tmp_path_factory.mktemp("finished") / "logs"
    with pytest.raises(SystemExit) as leaving:
        run(module.Options, module.main, [*MARKET, *SMALL, "--study-name", "s", "--logs", str(logs), "--quiet"])
    assert not leaving.value.code
    return logs


@pytest.fixture
def call_after(capsys, tmp_path, finished) -> Caller:
    return Caller(capsys, Path(shutil.copytree(finished, tmp_path / "logs")))


def bars_file(folder: Path, **changes) -> Path:
    n = 200
    stamps = pd.date_range("2024-01-01", periods=n, freq="1h", tz="UTC")
    close = 100 * np.exp(np.cumsum(np.random.default_rng(1).normal(0, 0.01, n)))
    columns = {"open": close, "high": close * 1.01, "low": close * 0.99, "close": close, "volume": np.full(n, 10.0)}
    frame = pd.DataFrame({"timestamp": stamps, "symbol": "BTCUSDT", **columns})
    for name, (row, value) in changes.items():
        frame.loc[row, name] = value
    frame.to_parquet(folder / "bars.parquet")
    return folder / "bars.parquet"


OPTIMIZE = {
    "unknown option": (["--nonsense", "3"], ("--nonsense", "--help")),
    "misspelt option": (["--n-trial", "3"], ("--n-trial,", "--n-trials")),
    "no number": (["--n-trials", "many"], ("--n-trials", "many")),
    "limit out of range": (["--max-pbo", "2"], ("max_pbo", "0 to 1")),
    "n_envs 0": ([*MARKET, "--n-envs", "0"], ("--n-envs 0", "at least 1")),
    "folds_per_batch -1": ([*MARKET, "--folds-per-batch", "-1"], ("--folds-per-batch -1", "at least 1")),
    "n_trials 0": ([*MARKET, "--n-trials", "0"], ("--n-trials 0", "at least 1")),
    "unknown symbol": (["--symbols", "NOPE"], ("NOPE", "AAPL")),
    "unknown synthetic symbol": ([*MARKET, "--symbols", "BTC"], ("BTC", "SYN0")),
    "finer timeframe": (["--timeframe", "1h"], ("1h", "1d")),
    "bad timeframe": (["--timeframe", "1M"], ("'1M'", "5m")),
    "unknown source": (["--data-source", "nowhere"], ("'nowhere'", "sample", "synthetic")),
    "option of another source": (["--synthetic-options", "n_bars=9"], ("--synthetic-options", "synthetic", "sample")),
    "unknown synthetic option": (
        ["--data-source", "synthetic", "--synthetic-options", "bars=9"],
        ("bars", "n_bars"),
    ),
    "too much held out": ([*MARKET, "--holdout-bars", "5000"], ("holdout_bars", "5000", "1 to")),
    "nothing held out": ([*MARKET, "--holdout-bars", "0"], ("holdout_bars", "0", "at least 1")),
    "too few bars": (
        ["--data-source", "synthetic", "--synthetic-options", "n_bars=20"],
        ("20 bars", "about 40"),
    ),
    "study elsewhere": ([*MARKET, "--study-name", "../x"], ("--study-name", "../x")),
    "one split": ([*MARKET, "--n-splits", "1"], ("--n-splits 1", "at least 2")),
    "too many splits": ([*MARKET, "--n-splits", "400"], ("n_splits 400", "at most")),
    "all groups tested": ([*MARKET, "--n-splits", "3", "--test-groups", "3"], ("--test-groups 3", "1 to 2")),
    "unknown environment": ([*MARKET, "--env", "NoSuchEnv"], ("NoSuchEnv", "VectorizedCryptoEnvAlpaca")),
    "environment not importable": ([*MARKET, "--env", "no.such:Env"], ("no.such:Env", "No module")),
    "wrong asset class": (
        [*MARKET, "--env", "VectorizedStockEnvAlpaca"],
        ("VectorizedStockEnvAlpaca", "stock", "crypto"),
    ),
    "environment without a market": ([*MARKET, "--env", "gym:CartPole-v1"], ("gym:CartPole-v1",)),
    "single environment": ([*MARKET, "--env", "CryptoEnvAlpaca"], ("CryptoEnvAlpaca",)),
    "clocks that do not share": ([*MARKET, "--n-envs", "8", "--clock-groups", "3"], ("clock_groups=3", "8 env")),
    "baseline of no group": ([*MARKET, "--n-envs", "8", "--group-baseline"], ("group_baseline", "clock_groups")),
    "baseline of no agent's": ([*MARKET, "--agent", "sac", "--group-baseline"], ("--group-baseline", "sac has none")),
    "no episode": ([*MARKET, "--episode-length", "0"], ("episode_length=0", "at least 1")),
    "no lag": ([*MARKET, "--decision-lag", "0"], ("decision_lag=0", "at least 1")),
    "fill price": ([*MARKET, "--fill-at", "mid"], ("fill_at='mid'", "open, close")),
    "action scheme": ([*MARKET, "--action", "bets"], ("'bets'", "trades, weights")),
    "negative cost": ([*MARKET, "--commission-bps", "-1"], ("commission_bps=-1", "0 <=")),
    "device": ([*MARKET, "--gpu", "7"], ("'7'", "cpu")),
    "no file": (["--data", "nowhere.parquet"], ("nowhere.parquet", "no such file")),
    "no dataset": (["--data-dir", "nowhere"], ("nowhere",)),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIMIZE)
def test_main_job(call, case):
    arguments, says = OPTIMIZE[case]
    call.refused("optimize", *arguments, says=says)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"close": (50, np.nan)}, ("BTCUSDT", "2024-01-03T02:00", "close is nan")),
        ({"volume": (7, -1.0)}, ("volume is -1.0",)),
        ({"low": (9, 1e9)}, ("low 1000000000.0 is above",)),
        ({"open": (3, 0.0)}, ("open is 0.0", "positive")),
    ],
    ids=["nan", "volume", "low", "zero"],
)
def test_bars_that_cannot_be_right(call, tmp_path, changes, says):
    path = bars_file(tmp_path, **changes)
    call.refused("optimize", "--data", str(path), *SMALL, says=("bars.parquet", *says))


@pytest.mark.parametrize("name", ["empty.parquet", "empty.csv", "half.parquet", "header.csv", "bars.txt"])
def test_files_that_hold_no_bars(call, tmp_path, name):
    path = tmp_path / name
    whole = bars_file(tmp_path).read_bytes()
    header = b"timestamp,symbol,open,high,low,close,volume\n"
    path.write_bytes({"half.parquet": whole[: len(whole) // 2], "header.csv": header}.get(name, b""))
    call.refused("optimize", "--data", str(path), says=(name,))


def test_a_lookback_longer_than_a_segment(call):
    # Segments of a market of 300 hourly bars: one, of 300 bars.
    options = ["--synthetic-options", "n_bars=100", "--data-source", "synthetic", "--n-envs", "2"]
    call.refused(
        "train", *options, "--env-options", "lookback=120", says=("lookback=120", "leave none of", "--test-days")
    )
    options += ["--test-days", "0"]
    line = call.refused("train", *options, "--env-options", "lookback=120", says=("lookback=120", "100 bars"))
    assert "longest segment" in line
    call.refused("train", *options, "--env-options", "lookback=0", says=("lookback=0", "1 to 256"))
    call.refused("train", *options, "--env-options", "lookbak=2", says=("lookbak", "lookback"))


def test_training_without_a_study(call):
    call.refused("train", "--n-envs", "0", says=("--n-envs 0", "at least 1"))
    call.refused("train", "--env", "gym:NoSuch-v0", says=("NoSuch-v0",))
    call.refused("train", "--timesteps", "10", "--episodes", "2", says=("exactly one of", "timesteps", "episodes"))


def test_a_checkpoint_cut_short(call):
    arguments = [*MARKET, "--n-envs", "2", "--iterations", "1", "--agent.horizon-len", "16", "--run", "r"]
    module = script("train")
    with pytest.raises(SystemExit) as leaving:
        run(module.Options, module.main, [*arguments, "--logs", str(call.logs)])
    if leaving.value.code == 2:  # prefixes of nested options are left out
        arguments = [a.replace("--agent.", "--") for a in arguments]
        status, _, err = call("train", *arguments)
        assert status == 0, err
    path = call.logs / "runs" / "r" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-100])
    call.refused("train", *arguments, "--resume", says=(str(path), "cut short"), left=True)


def test_a_study_of_another_dataset(call_after):
    other = [*MARKET, "--data-seed", "1", *SMALL, "--study-name", "s"]
    call_after.refused("optimize", *other, says=("'s'", "fingerprint", "--study-name"), left=True)
    other = [*MARKET, *SMALL, "--study-name", "s", "--n-splits", "3"]
    call_after.refused("optimize", *other, says=("'s'", "n_splits"), left=True)
    call_after.refused(
        "auto_replace_best", "--once", "--study-name", "s", *MARKET, "--data-seed", "1", says=("other bars",), left=True
    )
    call_after.refused(
        "auto_replace_best", "--once", "--study-name", "t", *MARKET, says=("'t'", "there are s"), left=True
    )


@pytest.mark.parametrize("name", ["backtest", "paper_trade"])
def test_models_that_do_not_fit(call_after, name, tmp_path):
    bundle = call_after.logs / "studies" / "s" / "bundle"
    given = ["--bundle", str(bundle)]
    count = "--last-bars" if name == "backtest" else "--replay-bars"
    here = ["--out", str(tmp_path / "out")] if name == "backtest" else []
    refused = call_after.refused
    refused(name, *here, "--bundle", "nowhere", *MARKET, says=("nowhere", "no bundle"), left=True)
    refused(name, *here, *MARKET, says=("no champion yet", "optimize.py"), left=True)
    refused(name, *here, *given, says=("symbols", "SYN0", "AAPL"), left=True)
    refused(name, *here, *given, *MARKET, "--timeframe", "5m", says=("timeframe", "'1h'", "'5m'"), left=True)
    for bars in ("1", "9999"):
        refused(name, *here, *given, *MARKET, count, bars, says=(f"{count} {bars}", "2 to 300"), left=True)
    assert not (tmp_path / "out").exists()
    for file in (MANIFEST, WEIGHTS):
        content = (bundle / file).read_bytes()
        (bundle / file).write_bytes(content[:-20] + b"~" + content[-19:])
        refused(name, *here, *given, *MARKET, says=(file,), left=True)
        (bundle / file).write_bytes(content)
    assert load_bundle(bundle)


def test_brokers_and_slots(call_after):
    call_after.refused("paper_trade", "--broker", "mars", *MARKET, says=("'mars'", "local"), left=True)
    call_after.refused("paper_trade", "--slot", "crypto-1h", *MARKET, says=("'crypto-1h'",), left=True)


def test_verbose_shows_where_it_came_from(call):
    status, _, err = call("optimize", *MARKET, "--fill-at", "mid", "--verbose")
    assert status == 2 and "Traceback" in err and err.rstrip().split("\n")[-1].startswith("error: fill_at='mid'")


def test_help_is_no_error(call):
    status, out, err = call("optimize", "--help")
    assert (status, err) == (0, "") and "--n-trials" in out and "--study-name" in out


def test_the_finished_job_is_whole(finished):
    """What the refusals above must not have touched was complete to begin with."""
    progress = json.loads((finished / "studies" / "s" / "progress.json").read_text())
    assert progress["state"] == "finished" and progress["counts"]["complete"] == 1
