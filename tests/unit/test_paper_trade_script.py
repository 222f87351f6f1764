"""scripts/paper_trade.py: a replay from end to end, and what is said of wrong input."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from drl_agents.deployment.bundle import load_bundle, save_bundle
from drl_agents.deployment.forecast import PREDICTION
from drl_agents.deployment.health import HELDOUT, keep_heldout
from drl_agents.deployment.journal import Journal
from drl_agents.networks.build import build_policy
from drl_agents.networks.policy import ActorCritic, PolicySpec
from drl_agents.training import commandline
from environments.alpaca_env import VectorizedStockEnvAlpaca
from environments.data.source import load_bars
from environments.live.alpaca_local.server import LocalAlpaca
from environments.market import Market
from scripts import paper_trade

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    market = Market.from_bars(load_bars("sample", symbols=("IBM", "MSFT")))
    env = VectorizedStockEnvAlpaca(market, 1)
    policy = ActorCritic(PolicySpec.of(env, hidden=(8,)), seeds=(3,))
    policy.fit_normalizer(env)
    with torch.no_grad():
        policy.actor.layers[-1].weight.mul_(60.0)
    lineage = {"study": "s", "trial": 1, "data": {"holdout_bars": 12}}
    return load_bundle(save_bundle(tmp_path_factory.mktemp("b"), policy, 0, env, "VectorizedStockEnvAlpaca", lineage))


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        commandline.run(paper_trade.Options, paper_trade.main, [*arguments, "--gpu", "cpu"])
    told = capsys.readouterr()
    return left.value.code, told.out, told.err


def test_a_replay_of_the_held_out_bars(bundle, tmp_path, capsys):
    arguments = ("--bundle", str(bundle.folder), "--logs", str(tmp_path), "--symbols", "IBM,MSFT", "--name", "x")
    for _ in range(2):  # the venue is new every time, and so is the trader
        status, out, _ = run(capsys, *arguments, "--drawdown", "None")
        assert status == 0 and f"{bundle.id[:12]} traded 11 bars" in out
    state = json.loads((tmp_path / "paper" / "x" / "state.json").read_text())
    assert (state["state"], state["broker"], state["bars_done"]) == ("FINISHED", "local", 11)
    assert state["risk"]["limits"]["drawdown"] is None and state["risk"]["limits"]["daily_loss"] == 0.5
    assert state["n_fills"] > 5 and len((tmp_path / "paper" / "x" / "equity.csv").read_text().splitlines()) == 12


def test_a_kill_switch_that_tripped_is_the_last_word(bundle, tmp_path, capsys):
    """A thousandth of the highest equity is lost soon enough: nothing is sold for it, and the exit says so."""
    arguments = ("--bundle", str(bundle.folder), "--logs", str(tmp_path), "--symbols", "IBM,MSFT")
    status, out, error = run(capsys, *arguments, "--drawdown", "0.001")
    state = json.loads((tmp_path / "paper" / "paper" / "state.json").read_text())
    assert status == 1 and "traded 11 bars" in out
    assert error.splitlines()[-1].startswith("halted: drawdown ") and "of 0.10% allowed" in error.splitlines()[-1]
    assert state["state"] == "HALTED" and state["positions"]


def test_the_prediction_beside_a_bundle_that_is_replayed(bundle, tmp_path, capsys):
    """Begun anew it is a prediction from the new beginning; of a bundle that has none there is none, of none an old."""
    own = load_bundle(shutil.copytree(bundle.folder, tmp_path / "b"))
    keep_heldout(own, np.random.default_rng(0).normal(0.0, 0.01, 300))
    file = tmp_path / "paper" / "x" / PREDICTION
    begun = []
    for count in (12, 6):
        given = ("--logs", str(tmp_path), "--symbols", "IBM,MSFT", "--name", "x", "--replay-bars", str(count))
        assert run(capsys, "--bundle", str(own.folder), *given)[0] == 0
        told = json.loads(file.read_text())
        stamps = [line.split(",")[0] for line in (file.parent / "equity.csv").read_text().splitlines()]
        assert told["model"] == own.id and told["equity"] > 0 and told["bars"][:2] == [1, 2]
        assert told["from"] < stamps[1] and len(stamps) == count
        begun.append(told["from"])
    assert begun[0] < begun[1]
    own.folder.joinpath(HELDOUT).unlink()
    assert run(capsys, "--bundle", str(own.folder), *given)[0] == 0 and not file.exists()


def test_missing_keys_in_one_line(bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("APCA_API_KEY_ID", "ALPACA_API_KEY", "APCA_API_SECRET_KEY", "ALPACA_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("APCA_API_KEY_ID", "not-to-be-shown")
    status, out, error = run(capsys, "--broker", "alpaca-paper", "--bundle", str(bundle.folder))
    assert status == 2 and error.count("\n") == 1 and "APCA_API_SECRET_KEY" in error
    assert "not-to-be-shown" not in out + error and not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--broker", "alpaca"), "accepted are local, alpaca-paper"),
        (("--replay-bars", "1"), "accepted are 2 to"),
        (("--symbols", "IBM"), "its symbols is ['IBM', 'MSFT']"),
        (("--daily-loss", "2"), "daily_loss=2"),
        (("--speed", "-1"), "accepted are seconds >= 0"),
        (("--name", "../x"), "--name '../x': the name of a folder"),
        (("--logs", "/dev/null"), "/dev/null/paper/paper: no folder can be made there"),
        (("--broker", "alpaca-paper", "--stock-feed", "otc"), "accepted are iex, sip"),
        (("--slot", "stock-1d-2-0"), "--slot: not read with --bundle"),
        (("--url", "http://127.0.0.1:1"), "--symbols: not read with --url"),
        (("--url", "http://127.0.0.1:1", "--replay-bars", "9", "--data", "x.csv"), "--data, --symbols, --replay-bars:"),
        (("--broker", "alpaca-paper", "--speed", "1"), "--symbols, --speed: not read with --broker alpaca-paper"),
        (("--stock-feed", "sip"), "--stock-feed: not read with --broker local, it replays"),
    ],
)
def test_wrong_input(bundle, tmp_path, capsys, arguments, said):
    given = ("--bundle", str(bundle.folder), "--logs", str(tmp_path), "--symbols", "IBM,MSFT")
    status, _, error = run(capsys, *given, *arguments)
    assert status == 2 and said in error and error.count("\n") == 1, error


def test_live_money_has_no_url(bundle, tmp_path, capsys):
    given = ("--bundle", str(bundle.folder), "--logs", str(tmp_path))
    status, _, error = run(capsys, *given, "--url", "https://api.alpaca.markets")
    assert status == 2 and "only paper accounts are traded" in error and error.count("\n") == 1


def test_other_symbols_than_the_models_are_refused(tmp_path, capsys):
    """A model of every asset by itself could judge them, but its trader would leave them out."""
    market = Market.from_bars(load_bars("sample", symbols=("IBM", "MSFT")))
    env = VectorizedStockEnvAlpaca(market, 1)
    policy = build_policy(PolicySpec.of(env, per_asset=True, hidden=(4,)), (1,))
    folder = save_bundle(tmp_path / "b", policy, 0, env, "VectorizedStockEnvAlpaca", {"data": {"holdout_bars": 12}})
    given = ("--bundle", str(folder), "--logs", str(tmp_path), "--symbols")
    status, _, error = run(capsys, *given, "IBM,MSFT,AAPL")
    assert status == 2 and error.count("\n") == 1
    assert "trades IBM, MSFT, the bars are of IBM, MSFT, AAPL: give its own" in error
    assert run(capsys, *given, "IBM,MSFT")[0] == 0


def test_a_replay_leaves_an_accounts_journal_alone(bundle, tmp_path, capsys):
    market = bundle.manifest["market"]
    facts = {name: market[name] for name in ("symbols", "timeframe", "asset_class")} | {"venue": "alpaca-paper"}
    journal = Journal(tmp_path / "paper" / "paper", facts)
    journal.bar(1, 1.0, 1.0, {}, True)
    journal.close()
    given = ("--bundle", str(bundle.folder), "--logs", str(tmp_path), "--symbols", "IBM,MSFT")
    status, _, error = run(capsys, *given)
    assert status == 2 and "a trader on alpaca-paper, which is not deleted; give another --name" in error
    Journal(tmp_path / "paper" / "paper", facts).close()


def test_a_venue_of_ones_own_by_its_url(bundle, tmp_path, capsys):
    """With a slash at the end, too; gone in the middle of it, the state does not stay ACTIVE."""
    market = Market.from_bars(load_bars("sample", symbols=("IBM", "MSFT")))
    start = market.n_bars - 12
    given = ("--bundle", str(bundle.folder), "--logs", str(tmp_path))
    with LocalAlpaca(bundle.env(market, (start, market.n_bars)), start, market.n_bars) as venue:
        status, out, _ = run(capsys, *given, "--url", venue.url + "/")
        assert status == 0 and "traded 11 bars" in out
        venue.reset(bundle.env(market, (start, market.n_bars)), start, market.n_bars)
        advance = venue.advance
        venue.advance = lambda: advance() if venue.bar < start + 5 else venue.nothing
        status, _, error = run(capsys, *given, "--url", venue.url, "--name", "gone")
    assert status == 1 and f"halted: the local venue {venue.url}: " in error
    assert json.loads((tmp_path / "paper" / "gone" / "state.json").read_text())["state"] == "HALTED"
