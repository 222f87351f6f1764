"""A model trades through Alpaca's protocol as it was tested: real client, real socket, orders and fills as text."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drl_agents.deployment.bundle import Bundle, load_bundle, save_bundle
from drl_agents.deployment.ledger import Unreconciled
from drl_agents.deployment.outbox import OPENS
from drl_agents.deployment.venues import paper_trading, replaying
from drl_agents.evaluation.backtest import backtest
from drl_agents.networks.policy import ActorCritic, PolicySpec
from environments.alpaca_env import VectorizedCryptoEnvAlpaca, VectorizedStockEnvAlpaca
from environments.data.credentials import Secret
from environments.errors import InputError
from environments.live import alpaca_broker, feed
from environments.live.alpaca_local.server import LocalAlpaca
from environments.live.risk import RiskLimits
from environments.market import Market

TOLERANCE = 1e-6
START, STOP = 60, 120
KEYS = (Secret("a-key-for-this-test"), Secret("a-secret-for-this-test"))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def crypto(make_market, random_bars) -> Market:
    return make_market(
        {
            "BTCUSDT": random_bars(1, STOP, price=30_000.0, missing=0.03),
            "DOGEUSDT": random_bars(2, STOP, price=0.1, sigma=0.03, idle=0.05),
            "AVAXUSDT": random_bars(3, STOP, price=20.0, listed=20, missing=0.05),
        }
    )


@pytest.fixture(scope="module")
def stocks(make_market, random_bars) -> Market:
    bars = {name: random_bars(seed, STOP, sigma=0.02) for seed, name in enumerate(("AB", "CD", "EF"))}
    return make_market(bars, asset_class="stock", timeframe="1d")


def bundle_for(market: Market, folder: Path, seed: int = 3, **options) -> Bundle:
    kind = VectorizedCryptoEnvAlpaca if market.asset_class == "crypto" else VectorizedStockEnvAlpaca
    env = kind(market, 1, **options)
    policy = ActorCritic(PolicySpec.of(env, hidden=(16,)), seeds=(seed,))
    policy.fit_normalizer(env)
    with torch.no_grad():
        policy.actor.layers[-1].weight.mul_(60.0)
    return load_bundle(save_bundle(folder, policy, 0, env, kind.__name__, {"study": "s", "trial": 1}))


@contextmanager
def venue_for(bundle: Bundle, market: Market, stop: int = STOP, **options):
    keys = {"key": KEYS[0].reveal(), "secret": KEYS[1].reveal()}
    with LocalAlpaca(bundle.env(market, (START, stop)), START, stop, **keys, **options) as venue:
        yield venue


CASES = {
    "trades": {},
    "weights": {"action": "weights", "lookback": 4},
    "regimes": {"action": "regimes"},
    "lag 2": {"decision_lag": 2, "max_trade": 0.05},
    "close": {"fill_at": "close"},
    "thin bars": {"participation": 1e-4, "impact_reference": "volume", "max_trade": 1.0},
}
MARGIN = {"margin": 2.0, "shorting": True, "borrow_bps": 300.0, "margin_rate_bps": 600.0, "action": "weights"}
STOCK_CASES = {"trades": {}, "weights": {"action": "weights"}, "regimes": {"action": "regimes"}, "margin": MARGIN}


@pytest.mark.parametrize(("kind", "name"), [*(("crypto", n) for n in CASES), *(("stocks", n) for n in STOCK_CASES)])
def test_live_equals_backtest(request, tmp_path, kind, name):
    market = request.getfixturevalue(kind)
    bundle = bundle_for(market, tmp_path / "bundle", **(CASES if kind == "crypto" else STOCK_CASES)[name])
    tested = backtest(bundle.env(market, (START, STOP)), bundle.decide)[0]
    with venue_for(bundle, market) as venue, replaying(bundle, venue.url, KEYS, tmp_path / "t", "t") as trader:
        paper = trader.run()
        assert trader.risk.reasons == [] and trader.reconciled and trader.open_orders >= 0
        assert trader.ledger.cash == venue.cash
    assert (paper.timestamps == tested.timestamps).all()
    assert np.abs(paper.equity / tested.equity - 1).max() <= TOLERANCE
    filled = {order["client_order_id"] for order in venue.orders if float(order["filled_qty"])}
    # What goes through zero is two orders: the second has the first one's id, with a word at its end.
    assert len({name.removesuffix(OPENS) for name in filled}) == tested.n_trades > 20
    assert paper.n_fills == len(filled) and (len(filled) > tested.n_trades) == (name == "margin")
    assert np.ptp(tested.equity) > 1e-3 * tested.equity[0]


def test_gone_on_with_after_every_few_bars(crypto, tmp_path):
    """Stopped and started again five times: the files and the curve are those of one run."""
    bundle = bundle_for(crypto, tmp_path / "bundle", decision_lag=2, max_trade=0.05)
    tested = backtest(bundle.env(crypto, (START, STOP)), bundle.decide)[0]
    with venue_for(bundle, crypto) as venue:
        for last in (65, 66, 80, 81, STOP):
            with replaying(bundle, venue.url, KEYS, tmp_path / "t", "t") as trader:
                paper = trader.run(stop=lambda last=last: venue.bar >= last)
    np.testing.assert_allclose(paper.equity, tested.equity, rtol=TOLERANCE)
    assert paper.n_fills == tested.n_trades
    lines = (tmp_path / "t" / "equity.csv").read_text().splitlines()
    assert len(lines) == STOP - START and len(set(lines)) == len(lines)
    orders = [json.loads(line) for line in (tmp_path / "t" / "orders.jsonl").read_text().splitlines()]
    ids = [order["client_order_id"] for order in orders]
    assert sorted(ids) == sorted(order["client_order_id"] for order in venue.orders) and len(set(ids)) == len(ids)
    state = json.loads((tmp_path / "t" / "state.json").read_text())
    assert state["bars_done"] == STOP - START - 1 and state["n_orders"] == len(ids) == paper.n_orders
    assert state["max_drawdown"] == pytest.approx(tested.figures()["max_drawdown"]["value"], rel=1e-5)


def test_bars_that_went_by_while_it_was_down(crypto, tmp_path):
    """Nothing is sent for them; what was open when it went is booked, and the books stay the venue's."""
    bundle = bundle_for(crypto, tmp_path / "bundle")
    with venue_for(bundle, crypto) as venue:
        with replaying(bundle, venue.url, KEYS, tmp_path / "t", "t") as trader:
            trader.run(stop=lambda: venue.bar >= 70 and trader.open_orders > 0)
            down = venue.bar
        for _ in range(5):
            venue.advance()
        sent = len(venue.orders)
        with replaying(bundle, venue.url, KEYS, tmp_path / "t", "t") as trader:
            paper = trader.run(stop=lambda: venue.bar >= 90)
            assert trader.ledger.cash == venue.cash
            assert {s: n for s, n in trader.ledger.positions.items() if n} == venue.positions
        assert len(venue.orders) > sent
        idle = trader.ledger.account.idle[0].tolist()
    assert paper.equity.size == 1 + 30 - 4 and max(idle) <= 30
    bars = [int(order["client_order_id"].split("-")[1]) for order in venue.orders]
    missed = crypto.timestamps[down + 1 : down + 5].tolist()
    assert not set(bars) & set(missed)


def test_a_forced_close_ends_it_for_good(make_market, random_bars, tmp_path):
    bars = {f"S{i}": random_bars(30 + i, 160, sigma=0.08) for i in range(2)}
    market = make_market(bars, asset_class="stock", timeframe="1d")
    wild = {"action": "weights", "sharpness": 20.0, "margin": 2.0, "shorting": True, "borrow_bps": 500.0}
    bundle = bundle_for(market, tmp_path / "bundle", **wild)
    tested = backtest(bundle.env(market, (START, 160)), bundle.decide)[0]
    assert tested.equity.size < 100, "the back-test ends in a forced close"
    with venue_for(bundle, market, 160) as venue:
        with replaying(bundle, venue.url, KEYS, tmp_path / "t", "t", limits=RiskLimits.off()) as trader:
            paper = trader.run()
            assert trader.state == "HALTED" and trader.ledger.cash == venue.cash and venue.positions == {}
        with (
            pytest.raises(InputError, match="closed by force"),
            replaying(bundle, venue.url, KEYS, tmp_path / "t", "t") as trader,
        ):
            trader.run()
    np.testing.assert_allclose(paper.equity, tested.equity, rtol=TOLERANCE)


class Replacing:
    """A hook that changes the model once."""

    def __init__(self, bundle: Bundle, bar: int, positions: str) -> None:
        self.bundle, self.bar, self.positions = bundle, bar, positions
        self.seen: list[tuple[bool, int, str]] = []

    def at_boundary(self, trader, bar) -> None:
        self.seen.append((trader.reconciled, trader.open_orders, trader.state))
        if len(self.seen) == self.bar:
            self.held = {s: n for s, n in trader.ledger.positions.items() if n}
            trader.replace_model(self.bundle, self.positions)

    def after_orders(self, trader, bar) -> None:
        assert trader.bar is bar


@pytest.mark.parametrize("positions", ["inherit", "flatten"])
def test_a_model_is_replaced_at_a_boundary(crypto, tmp_path, positions):
    old = bundle_for(crypto, tmp_path / "old", decision_lag=2)
    new = bundle_for(crypto, tmp_path / "new", seed=9, lookback=3, action="weights")
    hook = Replacing(new, 11, positions)
    with (
        venue_for(old, crypto) as venue,
        replaying(old, venue.url, KEYS, tmp_path / "t", "t", hook=hook) as trader,
    ):
        trader.run(stop=lambda: venue.bar >= 90)
        assert trader.bundle.id == new.id and trader.ledger.cash == venue.cash and hook.held
        assert all(seen == (True, 0, "ACTIVE") for seen in hook.seen)
        at = crypto.timestamps[START + 10].item()
        of_the_bar = {o["client_order_id"]: o for o in venue.orders if f"-{at}-" in o["client_order_id"]}
    owners = {name[:12] for name in of_the_bar}
    assert owners == {new.id[:12]}, "orders the old model held back are dropped"
    if positions == "flatten":
        assert {o["side"] for o in of_the_bar.values()} == {"sell"}
        assert {o["symbol"].replace("/", ""): float(o["qty"]) for o in of_the_bar.values()} == hook.held
    # It goes on under its new model, also after a restart.
    with venue_for(old, crypto) as venue, pytest.raises(InputError, match="another market|trades"):
        other = bundle_for(other_market(crypto), tmp_path / "other")
        with replaying(old, venue.url, KEYS, tmp_path / "u", "u", hook=Replacing(other, 2, "inherit")) as trader:
            trader.run()


def other_market(crypto: Market) -> Market:
    return replace(crypto, symbols=("BTCUSDT", "DOGEUSDT", "SOLUSDT"), _computed={})


def test_a_journal_of_another_replay_is_refused(crypto, tmp_path):
    bundle = bundle_for(crypto, tmp_path / "bundle")
    with venue_for(bundle, crypto) as venue:
        with replaying(bundle, venue.url, KEYS, tmp_path / "t", "t") as trader:
            trader.run(stop=lambda: venue.bar >= 80)
        venue.reset(bundle.env(crypto, (START, STOP)), START, STOP)
        with (
            pytest.raises(InputError, match="another replay"),
            replaying(bundle, venue.url, KEYS, tmp_path / "t", "t") as trader,
        ):
            trader.run()
        with replaying(bundle, venue.url, KEYS, tmp_path / "t", "t", fresh=True) as trader:
            assert trader.run(stop=lambda: venue.bar >= 70).equity.size == 11


def test_somebody_else_trades_the_account(crypto, tmp_path):
    """Their open orders are left alone; once they change the books, it stops."""
    bundle = bundle_for(crypto, tmp_path / "bundle")
    with venue_for(bundle, crypto) as venue, replaying(bundle, venue.url, KEYS, tmp_path / "t", "t") as trader:
        body = {"symbol": "BTC/USDT", "qty": "1", "side": "buy", "type": "limit", "limit_price": "20",
                "time_in_force": "gtc", "client_order_id": "by hand"}  # fmt: skip
        venue.venue.submit(body)
        trader.run(stop=lambda: venue.bar >= 70)
        (theirs,) = [order for order in venue.orders if order["client_order_id"] == "by hand"]
        assert theirs["status"] == "new" and trader.reconciled
        kinds = trader.journal._db.execute("SELECT kind, detail FROM events").fetchall()
        assert ("foreign order", "by hand") in kinds
    with venue_for(bundle, crypto) as venue, replaying(bundle, venue.url, KEYS, tmp_path / "u", "u") as trader:
        touched: list[int] = []

        def stop() -> bool:
            busy = {o["symbol"].replace("/", "") for o in venue.orders if o["status"] == "new"}
            free = set(venue.positions) - busy
            if free and not touched:
                venue.venue.close_position(free.pop())
                touched.append(venue.bar)
            return False

        with pytest.raises(Unreconciled, match="books differ"):
            trader.run(stop)
        assert trader.state == "HALTED" and venue.bar == touched[0] + 1 and not trader.reconciled


def test_limits_are_kept(crypto, tmp_path):
    bundle = bundle_for(crypto, tmp_path / "bundle", action="weights", sharpness=20.0)
    limits = RiskLimits(asset_weight=0.3)
    with (
        venue_for(bundle, crypto) as venue,
        replaying(bundle, venue.url, KEYS, tmp_path / "t", "t", limits=limits) as trader,
    ):
        trader.run(stop=lambda: venue.bar >= 100)
        blocked = trader.journal._db.execute("SELECT detail FROM transitions WHERE state = 'blocked'").fetchall()
    assert blocked and all("0.3 allowed" in detail for (detail,) in blocked)
    state = json.loads((tmp_path / "t" / "state.json").read_text())
    assert state["risk"]["limits"]["asset_weight"] == 0.3 and state["risk"]["state"] == "FINISHED"
    assert state["reconciled"] and state["stale"] is False and state["latency_ms"]["p99"] > 0


def test_no_key_is_in_any_file(crypto, tmp_path, caplog):
    caplog.set_level(0)
    bundle = bundle_for(crypto, tmp_path / "bundle")
    with venue_for(bundle, crypto) as venue, replaying(bundle, venue.url, KEYS, tmp_path / "t", "t") as trader:
        venue.faults.next("500", "/v2/orders", "POST")
        venue.faults.next("drop_reply", "/v2/account")
        trader.run(stop=lambda: venue.bar >= 70)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"state.json", "journal.sqlite", "equity.csv", "orders.jsonl"} <= {path.name for path in files}
    told = caplog.text.encode() + b"".join(path.read_bytes() for path in files)
    for secret in KEYS:
        assert secret.reveal().encode() not in told


def test_bars_as_they_close(crypto, tmp_path, monkeypatch):
    """Not in lock step: the venue moves on by itself, the trader looks at its clock and asks for what has closed."""
    monkeypatch.setattr(alpaca_broker, "CLOCK_EVERY", 0.0)
    monkeypatch.setattr(alpaca_broker, "SELLS_FILL_WITHIN", 0.0)  # nothing fills before the venue moves on
    monkeypatch.setattr(feed, "FIRST_POLL", 0.0)
    monkeypatch.setattr(feed, "POLL", 0.0)
    monkeypatch.setattr(feed, "GRACE", 0.0)
    bundle = bundle_for(crypto, tmp_path / "bundle")
    stop = START + 6
    tested = backtest(bundle.env(crypto, (START, stop)), bundle.decide)[0]
    with (
        venue_for(bundle, crypto, stop) as venue,
        paper_trading(bundle, KEYS, tmp_path / "t", "t", url=venue.url, limits=RiskLimits.off()) as trader,
    ):
        seen = threading.Event()

        class Telling:
            def at_boundary(self, trader, bar) -> None:
                """What is sent at this bar comes after."""

            def after_orders(self, trader, bar) -> None:
                seen.set()

        trader.hook = Telling()

        def move_on() -> None:
            while seen.wait(20):
                seen.clear()
                if not venue.advance():
                    return

        mover = threading.Thread(target=move_on)
        mover.start()
        paper = trader.run(stop=lambda: trader.bars_done >= tested.equity.size - 1)
        seen.set()
        mover.join()
        assert trader.broker.name == "alpaca-paper" and trader.ledger.cash == venue.cash
    np.testing.assert_allclose(paper.equity, tested.equity, rtol=TOLERANCE)
    assert paper.n_orders > 5


def test_models_that_the_venue_cannot_serve_are_refused(crypto, tmp_path):
    bundle = bundle_for(crypto, tmp_path / "bundle", fill_at="close")
    with pytest.raises(InputError, match="fill_at=open"), paper_trading(bundle, KEYS, tmp_path / "t", "t"):
        pass
    bundle.manifest["market"]["extra"] = ["marketcap"]
    with (
        pytest.raises(InputError, match="marketcap"),
        replaying(bundle, "http://127.0.0.1:1", KEYS, tmp_path / "t", "t"),
    ):
        pass
