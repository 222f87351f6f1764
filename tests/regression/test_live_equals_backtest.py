"""The heart of it: a model trades live as it was tested. The trader sees closed bars one by one, and nothing else."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from drl_agents.deployment.bundle import Bundle, load_bundle, save_bundle
from drl_agents.deployment.trader import PaperResult, PaperTrader, Unreconciled
from drl_agents.evaluation.backtest import backtest
from drl_agents.evaluation.result import BacktestResult
from drl_agents.networks.policy import ActorCritic, PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca, VectorizedStockEnvAlpaca
from environments.data.source import load_bars
from environments.errors import InputError
from environments.features import MEMORY
from environments.live.broker import Order
from environments.live.local import LocalBroker
from environments.live.view import MarketView
from environments.market import Market

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
TOLERANCE = 1e-6


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def crypto(make_market, random_bars) -> Market:
    """Coins with increments from 0.0001 to 1, one listed late; bars are missing, and some traded nothing."""
    return make_market(
        {
            "BTCUSDT": random_bars(1, 420, price=30_000.0, missing=0.03),
            "DOGEUSDT": random_bars(2, 420, price=0.1, sigma=0.03, idle=0.05),
            "AVAXUSDT": random_bars(3, 420, price=20.0, listed=230, missing=0.05, idle=0.03),
        }
    )


@pytest.fixture(scope="module")
def stocks() -> Market:
    options = {"kind": "regimes", "n_bars": 300, "n_assets": 3, "sigma": 0.02}
    return Market.from_bars(load_bars("synthetic", options=options, timeframe="1d", asset_class="stock", seed=5))


def bundle_for(market: Market, folder: Path, **options) -> Bundle:
    """A policy that was never trained but decides with vigour: what it does must only be the same twice."""
    kind = VectorizedCryptoEnvAlpaca if market.asset_class == "crypto" else VectorizedStockEnvAlpaca
    env = kind(market, 1, **options)
    policy = ActorCritic(PolicySpec.of(env, hidden=(16,)), seeds=(3,))
    policy.fit_normalizer(env)
    with torch.no_grad():
        policy.actor.layers[-1].weight.mul_(60.0)
    return load_bundle(save_bundle(folder / "bundle", policy, 0, env, kind.__name__, {"study": "s", "trial": 1}))


def both(bundle: Bundle, market: Market, window: tuple[int, int], folder: Path) -> tuple[BacktestResult, PaperResult]:
    tested = backtest(bundle.env(market, window), bundle.decide, ["model"])[0]
    env = bundle.env(market, window)
    broker = LocalBroker(env, int(env.bar[0]), window[1])
    return tested, PaperTrader(bundle, broker, folder / "paper", "t").run()


def difference(tested: BacktestResult, paper: PaperResult) -> float:
    assert (paper.timestamps == tested.timestamps).all()
    assert paper.equity.size == tested.equity.size
    return float(np.abs(paper.equity / tested.equity - 1).max())


CASES = {
    "trades": {},
    "lookback": {"lookback": 8},
    "weights": {"action": "weights"},
    "weights, lookback": {"action": "weights", "lookback": 8, "sharpness": 10.0},
    "lag 2": {"decision_lag": 2},
    "lag 3": {"decision_lag": 3, "action": "weights"},
    "close": {"fill_at": "close"},
    "close, lag 2": {"fill_at": "close", "decision_lag": 2, "lookback": 8, "max_trade": 1.0},
    "no costs": {"commission_bps": 0.0, "spread_bps": 0.0, "slippage_bps": 0.0, "impact_coef": 0.0},
    "fees in currency": {"fee_in": "quote"},
    "thin bars": {"participation": 1e-4, "impact_reference": "volume", "max_trade": 1.0},
    "poor": {"initial_cash": 150.0, "max_trade": 0.3},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["crypto", "stocks"])
def test_live_equals_backtest(request, tmp_path, kind, name):
    market = request.getfixturevalue(kind)
    options = CASES[name]
    bundle = bundle_for(market, tmp_path, **options)
    tested, paper = both(bundle, market, (100, market.n_bars), tmp_path)
    worst = difference(tested, paper)
    assert worst <= TOLERANCE
    assert paper.n_fills == tested.n_trades > 30
    assert np.ptp(tested.equity) > 1e-3 * tested.equity[0]


MARGIN = {
    "trades": {},
    "weights": {"action": "weights", "sharpness": 2.0},
    "lag 2": {"decision_lag": 2, "action": "weights", "participation": 0.01},
    "leverage": {"shorting": False, "margin": 4.0, "maintenance_margin": 0.2},
    "whole shares": {"rules": {f"SYN{i}": {"fractional": False} for i in range(3)}},
}


@pytest.mark.parametrize("name", MARGIN)
def test_live_equals_backtest_on_margin(stocks, tmp_path, name):
    options = {"margin": 2.0, "shorting": True, "borrow_bps": 300.0, "margin_rate_bps": 600.0, "max_trade": 1.0}
    options |= MARGIN[name]
    if options.get("action") == "weights":
        options.pop("max_trade")
    bundle = bundle_for(stocks, tmp_path, **options)
    assert bundle.env(stocks, (100, 200)).margin == VectorizedStockEnvAlpaca(stocks, 1, **options).margin
    tested, paper = both(bundle, stocks, (100, stocks.n_bars), tmp_path)
    assert difference(tested, paper) <= TOLERANCE
    # What traded in the bar of a forced close is filled twice there, and counted as one asset traded.
    twice = 0 if tested.equity.size == 200 else 3
    assert 30 < tested.n_trades <= paper.n_fills <= tested.n_trades + twice
    assert tested.weights.min() < -0.1 if options["shorting"] else tested.weights.sum(1).max() > 1.5


def test_a_forced_close_ends_both(make_market, random_bars, tmp_path):
    """Wild bars, all the leverage there is: the back-test ends in a forced close, the trader with it, halted."""
    bars = {f"S{i}": random_bars(30 + i, 400, sigma=0.08) for i in range(2)}
    market = make_market(bars, asset_class="stock", timeframe="1d")
    bundle = bundle_for(market, tmp_path, action="weights", sharpness=20.0, margin=2.0, shorting=True, borrow_bps=500.0)
    tested, paper = both(bundle, market, (100, 400), tmp_path)
    assert tested.equity.size < 300 and not tested.weights[-1].any() and tested.weights[-2].any()
    assert difference(tested, paper) <= TOLERANCE
    state = json.loads((tmp_path / "paper" / "state.json").read_text())
    assert state["state"] == "HALTED" and state["positions"] == [] and state["equity"] == paper.equity[-1]
    assert state["fees"] == pytest.approx(tested.fees.sum(), rel=1e-9)


def test_a_model_from_before_fees_in_units_pays_in_currency(crypto, tmp_path):
    bundle = bundle_for(crypto, tmp_path, fee_in="quote")
    for name in ("fee_in", "impact_reference", "participation", "margin", "shorting"):
        bundle.manifest["env"]["options"].pop(name)
    assert bundle.env(crypto, (100, 300)).frictions.fee_in == "quote"
    assert bundle.env(crypto, (100, 300), fee_in="received").frictions.fee_in == "received"
    tested, paper = both(bundle, crypto, (100, 300), tmp_path)
    assert difference(tested, paper) <= TOLERANCE and tested.n_trades > 30


@pytest.mark.parametrize("start", [2 * MEMORY - 40, 3 * MEMORY - 40])
def test_the_view_forgets_without_a_trace(make_market, random_bars, tmp_path, start):
    """Past 2,048 bars of an asset the buffer is moved, past 3,072 once more; one asset's turn is the later."""
    bars = {"ETHUSDT": random_bars(7, start + 160, price=2_000.0), "SOLUSDT": random_bars(8, start + 160, listed=25)}
    market = make_market(bars)
    bundle = bundle_for(market, tmp_path, lookback=4)
    tested, paper = both(bundle, market, (start, market.n_bars), tmp_path)
    worst = difference(tested, paper)
    assert worst <= TOLERANCE and tested.n_trades > 30


def test_the_view_shows_the_rows_training_saw(crypto):
    """Not only the equity: every feature, mark and flag of every bar."""
    env = VectorizedCryptoEnvAlpaca(crypto, 1, lookback=3)
    broker = LocalBroker(env, 60, crypto.n_bars)
    view = MarketView(3, env.features.names, (), 3, torch.float64)
    view.replay(broker.history())
    worst = 0.0
    for bar in range(60, crypto.n_bars):
        if bar > 60:
            view.append(broker.next_bar())
        expected = env.rows[bar - 2 : bar + 1]
        assert torch.equal(view.rows.isnan(), expected.isnan()), bar
        worst = max(worst, float((view.rows - expected).nan_to_num().abs().max()))
        assert torch.equal(view.mark[0], crypto.mark[bar])
        assert torch.equal(view.judged[0], env.bar_row(torch.tensor([bar])).judged[0])
    assert worst <= 1e-6 and broker.next_bar() is None


def test_a_shorter_history_still_equals(crypto, tmp_path):
    """Trading from the first bar at which anything can be judged: the lookback reaches before the first bar seen."""
    bundle = bundle_for(crypto, tmp_path, lookback=8)
    tested, paper = both(bundle, crypto, (0, 160), tmp_path)
    assert difference(tested, paper) <= TOLERANCE and tested.n_trades > 0


@pytest.mark.parametrize(
    ("file", "start", "asset_class"),
    [
        ("crypto_5m_binance_2024.parquet", "2024-09-01", "crypto"),
        ("us_daily_dow30_mega8_2004_2021.parquet", "2019-02-01", "stock"),
    ],
)
@pytest.mark.skipif(not REAL.is_dir(), reason="no real bars beside the project")
def test_live_equals_backtest_on_real_bars(file, start, asset_class, tmp_path):
    path = REAL / file
    if not path.exists():
        pytest.skip(f"{file} is not there")
    market = Market.from_bars(load_bars("files", path=path, start=start, asset_class=asset_class))
    bundle = bundle_for(market, tmp_path, lookback=4, action="weights" if asset_class == "stock" else "trades")
    tested, paper = both(bundle, market, (market.n_bars - 600, market.n_bars), tmp_path)
    worst = difference(tested, paper)
    assert worst <= TOLERANCE and tested.n_trades > 100


def test_what_is_written(crypto, tmp_path):
    bundle = bundle_for(crypto, tmp_path)
    tested, paper = both(bundle, crypto, (100, 300), tmp_path)
    folder = tmp_path / "paper"
    rows = list(csv.DictReader((folder / "equity.csv").read_text().splitlines()))
    assert [float(r["equity"]) for r in rows] == paper.equity[1:].tolist()
    stamps = pd.to_datetime([r["timestamp"] for r in rows]).as_unit("ns").asi8
    assert (stamps == paper.timestamps[1:]).all()
    orders = [json.loads(line) for line in (folder / "orders.jsonl").read_text().splitlines()]
    assert len(orders) == paper.n_orders >= paper.n_fills
    assert len({o["client_order_id"] for o in orders}) == len(orders)
    assert all(o["client_order_id"].startswith(bundle.id[:12]) and o["quantity"] > 0 for o in orders)
    assert {o["side"] for o in orders} == {"buy", "sell"}
    state = json.loads((folder / "state.json").read_text())
    assert (state["state"], state["model"], state["study"], state["broker"]) == ("FINISHED", bundle.id, "s", "local")
    assert state["bars_done"] == len(rows) == 199 and state["bar"] == rows[-1]["timestamp"]
    assert state["equity"] == paper.equity[-1] and state["cash"] == float(rows[-1]["cash"])
    assert state["initial_equity"] == 100_000.0
    assert (state["n_orders"], state["n_fills"]) == (paper.n_orders, paper.n_fills)
    assert state["fees"] == pytest.approx(tested.fees.sum(), rel=1e-9)
    assert state["max_drawdown"] == pytest.approx(tested.figures()["max_drawdown"]["value"], rel=1e-9)
    assert state["cash"] + sum(p["value"] for p in state["positions"]) == pytest.approx(state["equity"], rel=1e-12)
    weights = {p["symbol"]: p["weight"] for p in state["positions"]}
    last = dict(zip(crypto.symbols, tested.weights[-1], strict=True))
    assert weights == {s: pytest.approx(w, rel=1e-6) for s, w in last.items() if w}
    assert len(state["orders"]) == 20 and {o["status"] for o in state["orders"]} <= {
        "new", "filled", "partially_filled", "canceled",
    }  # fmt: skip
    filled = [o for o in state["orders"] if o["status"] == "filled"]
    kept = {"buy": 25e-4, "sell": 0.0}  # what the venue keeps of a coin bought is not among what was filled
    for o in filled:
        assert o["filled_quantity"] == pytest.approx(o["quantity"] * (1 - kept[o["side"]])) and o["filled_price"] > 0
    assert {o["side"] for o in filled} == {"buy", "sell"}


class WrongBroker(LocalBroker):
    """Its books change by themselves, at the first bar after the 130th at which something is held."""

    wrong, since = "cash", None

    def _late(self) -> bool:
        if self.since is None and self.bar >= 130 and super().positions():
            self.since = self.bar
        return self.since is not None

    def cash(self) -> float:
        return super().cash() + (0.01 if self._late() and self.wrong == "cash" else 0.0)

    def positions(self) -> dict[str, float]:
        held = dict(super().positions())
        if self._late() and self.wrong == "less":
            symbol = max(held, key=held.get)
            held[symbol] *= 1 - 1e-6
        elif self._late() and self.wrong == "gone":
            held.pop(next(iter(held)))
        elif self._late() and self.wrong == "foreign":
            held["SHIBUSDT"] = 1.0
        return held


@pytest.mark.parametrize("wrong", ["cash", "less", "gone", "foreign"])
def test_books_that_differ_halt_the_trader(crypto, tmp_path, wrong):
    bundle = bundle_for(crypto, tmp_path)
    env = bundle.env(crypto, (100, 300))
    broker = WrongBroker(env, int(env.bar[0]), 300)
    broker.wrong = wrong
    trader = PaperTrader(bundle, broker, tmp_path / "paper", "t")
    with pytest.raises(Unreconciled, match="books differ"):
        trader.run()
    state = json.loads((tmp_path / "paper" / "state.json").read_text())
    assert state["state"] == "HALTED"
    assert broker.bar == broker.since, "it went on trading"
    written = (tmp_path / "paper" / "equity.csv").read_text().splitlines()
    assert len(written) == 1 + broker.since - 100 - 1


def test_stopped_between_bars(crypto, tmp_path):
    bundle = bundle_for(crypto, tmp_path)
    env = bundle.env(crypto, (100, 300))
    broker = LocalBroker(env, 100, 300)
    paper = PaperTrader(bundle, broker, tmp_path / "paper", "t").run(stop=lambda: broker.bar >= 150)
    tested = backtest(bundle.env(crypto, (100, 300)), bundle.decide)[0]
    assert paper.equity.size == 51
    np.testing.assert_allclose(paper.equity, tested.equity[:51], rtol=TOLERANCE)


def test_the_local_broker_refuses_what_no_venue_takes(crypto):
    env = VectorizedCryptoEnvAlpaca(crypto, 1)
    broker = LocalBroker(env, 100, 200)
    good = Order("1", "BTCUSDT", "buy", 0.01)
    broker.submit([good])
    for bad in (
        good,
        Order("2", "NOPE", "buy", 1.0),
        Order("3", "BTCUSDT", "hold", 1.0),
        Order("4", "BTCUSDT", "buy", 0.0),
    ):
        with pytest.raises(InputError, match="must be unique|unknown symbol, side or quantity"):
            broker.submit([bad])
    for window in ((-1, 100), (100, 100), (100, 101), (100, 421)):
        with pytest.raises(InputError, match="the market has 420"):
            LocalBroker(env, *window)


def test_bars_out_of_order_are_refused(crypto):
    env = VectorizedCryptoEnvAlpaca(crypto, 1)
    bars = LocalBroker(env, 100, 200).history()
    view = MarketView(3, env.features.names, (), 1, torch.float64)
    view.append(bars[5])
    for late in (bars[5], bars[4]):
        with pytest.raises(InputError, match="bars must be in order"):
            view.append(late)
