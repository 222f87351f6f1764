"""What moves an account but for trades, from alpaca-py's own client to the books, by hand; and who else trades it."""

from __future__ import annotations

import json
import multiprocessing

import pytest
import torch
from alpaca.trading.client import TradingClient
from alpaca.trading.models import NonTradeActivity

from drl_agents.deployment.account_lock import sole_trader
from drl_agents.deployment.activities import book
from drl_agents.deployment.bundle import Bundle, load_bundle, save_bundle
from drl_agents.deployment.ledger import Ledger, Unreconciled
from drl_agents.deployment.venues import replaying
from drl_agents.networks.policy import ActorCritic, PolicySpec
from environments.alpaca_env import VectorizedStockEnvAlpaca
from environments.data.credentials import Secret
from environments.errors import InputError
from environments.live.alpaca_broker import AlpacaBroker
from environments.live.alpaca_local.server import LocalAlpaca
from environments.live.broker import Activity, Slack
from environments.margin import MarginTerms
from environments.market import Market

pytestmark = pytest.mark.usefixtures("one_thread")
KEYS = (Secret("local"), Secret("local"))
START, STOP, SPLIT_AT = 40, 70, 50
MARK = torch.tensor([[50.0, 20.0]], dtype=torch.float64)
SLACK = AlpacaBroker.slack


# ------------------------------------------------------------------------------------------- the arithmetic


def books(cash: float = 1_000.0, held: float = 10.0) -> Ledger:
    ledger = Ledger(["A", "B"], MarginTerms(), cash)
    ledger.take_over({"A": held}, MARK)
    return ledger


def moved(kind: str, cash: float, **more) -> Activity:
    return Activity(f"{kind} {cash} {more}", kind, cash, **more)


def test_money_paid_in_is_told_apart_from_income():
    """1,000 in cash; 500 paid in, 120 paid out, a dividend of 7.50, a fee of 0.30: 1,387.20, of which 380 no profit."""
    ledger = books()
    told = [moved("CSD", 500.0), moved("CSW", -120.0), moved("DIV", 7.5, symbol="A"), moved("FEE", -0.3)]
    booked = book(told, ledger, 1_387.2, {"A": 10.0}, SLACK, MARK)
    assert ledger.cash == pytest.approx(1_387.2) and ledger.fees == pytest.approx(0.3)
    assert booked.paid == 380.0 and booked.splits == {} and booked.told == told
    assert [activity.kind for activity in booked.taken] == ["CSD", "CSW", "DIV", "FEE"]


def test_costs_that_the_books_have_already_are_not_booked_twice():
    """Fees of 0.30 and 2.10 were told; the cash lacks the second alone, or neither."""
    for cash, fees in ((1_497.9, 2.1), (1_500.0, 0.0)):
        ledger = books()
        book([moved("FEE", -0.3), moved("FEE", -2.1), moved("CSD", 500.0)], ledger, cash, {"A": 10.0}, SLACK, MARK)
        assert ledger.cash == pytest.approx(cash) and ledger.fees == pytest.approx(fees)


def test_a_split_conserves_value():
    """10 A bought at 50 become 30 at 16.67 each; one for five backwards, 2 at 250."""
    for after, entry in ((30.0, 50 / 3), (2.0, 250.0)):
        ledger = books()
        told = [moved("SPLIT", 0.0, symbol="A", units=-10.0), moved("SPLIT", 0.0, symbol="A", units=after)]
        booked = book(told, ledger, 1_000.0, {"A": after}, SLACK, MARK)
        assert ledger.positions["A"] == after and ledger.account.entry[0, 0].item() == pytest.approx(entry)
        assert booked.splits == {"A": pytest.approx(after / 10)} and booked.paid == 0.0
        mark = torch.tensor([[entry, 20.0]], dtype=torch.float64)
        assert ledger.equity(mark) == pytest.approx(1_500.0)


@pytest.mark.parametrize(
    ("told", "cash", "held"),
    [
        ([moved("CSD", 500.0)], 1_400.0, {"A": 10.0}),  # a hundred are missing
        ([moved("FEE", -3.0)], 990.0, {"A": 10.0}),  # more than the fees told
        ([moved("CSD", 500.0, status="canceled")], 1_500.0, {"A": 10.0}),
        ([moved("CSD", 500.0)], 1_500.0, {"A": 9.0}),
        ([moved("SPIN", 0.0, symbol="Z", units=2.0)], 1_000.0, {"A": 10.0, "Z": 2.0}),
        ([moved("SPLIT", 0.0, symbol="B", units=2.0)], 1_000.0, {"A": 10.0, "B": 2.0}),  # of nothing
    ],
)
def test_what_is_not_explained_stays_different(told, cash, held):
    with pytest.raises(Unreconciled):
        book(told, books(), cash, held, SLACK, MARK)


def test_exact_books_are_explained_exactly():
    with pytest.raises(Unreconciled):
        book([moved("CSD", 500.0)], books(), 1_500.01, {"A": 10.0}, Slack(), MARK)


# ------------------------------------------------------------------------------------------- from end to end


@pytest.fixture(scope="module")
def market(make_market, random_bars) -> Market:
    """A falls to a third as bar SPLIT_AT + 1 opens: it was split."""
    bars = {"A": random_bars(1, STOP, price=90.0), "B": random_bars(2, STOP, price=20.0)}
    bars["A"] = [
        tuple(x / 3 for x in bar[:4]) + bar[4:] if i > SPLIT_AT else bar for i, bar in enumerate(bars["A"])
    ]  # fmt: skip
    return make_market(bars, asset_class="stock", timeframe="1d")


@pytest.fixture(scope="module")
def bundle(market, tmp_path_factory) -> Bundle:
    """It buys a little at every bar."""
    env = VectorizedStockEnvAlpaca(market, 1, max_trade=0.02)
    policy = ActorCritic(PolicySpec.of(env, hidden=(8,)), seeds=(3,))
    policy.fit_normalizer(env)
    with torch.no_grad():
        policy.actor.layers[-1].weight.zero_()
        policy.actor.layers[-1].bias.fill_(5.0)
    folder = tmp_path_factory.mktemp("b")
    return load_bundle(save_bundle(folder, policy, 0, env, "VectorizedStockEnvAlpaca", {}))


def tell(venue: LocalAlpaca, **body) -> None:
    """As a user of the venue tells it: by the path of its own."""
    import requests

    answer = requests.post(f"{venue.url}/local/v1/activities", json=body, timeout=5)
    assert answer.status_code == 200, answer.text


def test_alpaca_pys_client_reads_what_was_told(bundle, market):
    with LocalAlpaca(bundle.env(market, (START, STOP)), START, STOP) as venue:
        tell(venue, activity_type="CSD", net_amount="500")
        tell(venue, activity_type="DIV", net_amount=1.25, symbol="A")
        client = TradingClient("local", "local", url_override=venue.url)
        told = client.get("/account/activities", {"category": "non_trade_activity", "direction": "asc"})
        read = [NonTradeActivity(**entry) for entry in told]
        assert [(a.activity_type.value, a.net_amount, a.symbol) for a in read] == [
            ("CSD", 500.0, None), ("DIV", 1.25, "A"),
        ]  # fmt: skip
        assert venue.cash == 100_501.25
        broker = AlpacaBroker(["A", "B"], "stock", KEYS, url=venue.url, lock_step=True)
        since = int(market.timestamps[START])
        assert [(a.kind, a.cash) for a in broker.activities(since - 2 * 24 * 3_600 * 10**9)] == [
            ("CSD", 500.0), ("DIV", 1.25),
        ]  # fmt: skip
        assert broker.activities(since + 3 * 24 * 3_600 * 10**9) == []


def test_a_trader_goes_on_through_a_deposit_a_dividend_and_a_split(bundle, market, tmp_path):
    with LocalAlpaca(bundle.env(market, (START, STOP)), START, STOP) as venue:
        given: list[str] = []

        def meanwhile() -> bool:
            if venue.bar == START + 5 and not given:
                tell(venue, activity_type="CSD", net_amount="50000")
                tell(venue, activity_type="DIV", net_amount="30", symbol="B")
                given.append("cash")
            if venue.bar == SPLIT_AT and "split" not in given:
                tell(venue, activity_type="SPLIT", symbol="A", ratio=3)
                given.append("split")
            return venue.bar >= SPLIT_AT + 4

        with replaying(bundle, venue.url, KEYS, tmp_path / "t", "t") as trader:
            paper = trader.run(meanwhile)
            assert trader.state == "FINISHED" and trader.reconciled
            assert trader.ledger.cash == venue.cash and trader.equity == pytest.approx(venue.equity, rel=1e-12)
            factor, peak = trader.flow_factor, trader.peak
            kept = [json.loads(d) for d, in trader.journal._db.execute(
                "SELECT detail FROM events WHERE kind = 'activity' ORDER BY rowid")]  # fmt: skip
        # Gone on with: nothing is booked again, and what returns are measured from is kept.
        with replaying(bundle, venue.url, KEYS, tmp_path / "t", "t") as trader:
            trader.run(lambda: venue.bar >= SPLIT_AT + 8)
            assert (trader.state, trader.flow_factor) == ("FINISHED", factor)
            assert trader.ledger.cash == venue.cash and trader.peak >= peak
    assert [entry["kind"] for entry in kept] == ["CSD", "DIV", "SPLIT", "SPLIT"]
    at = START + 6  # the bar at whose close it was found
    with_it = paper.equity[at - START]
    assert factor == pytest.approx(with_it / (with_it - 50_000.0), rel=1e-12)
    steps = paper.equity[1:] / paper.equity[:-1] - 1
    steps[at - START - 1] = (with_it - 50_000.0) / paper.equity[at - START - 1] - 1
    assert abs(steps).max() < 0.02, "no jump is left: not of the deposit, and not of the split"
    state = json.loads((tmp_path / "t" / "state.json").read_text())
    assert state["initial_equity"] == pytest.approx(100_000.0 * factor) and state["max_drawdown"] < 0.05


def test_a_deposit_between_stop_and_start_is_no_reason_to_refuse(bundle, market, tmp_path):
    with LocalAlpaca(bundle.env(market, (START, STOP)), START, STOP) as venue:
        with replaying(bundle, venue.url, KEYS, tmp_path / "t", "t") as trader:
            trader.run(lambda: venue.bar >= START + 3)
        tell(venue, activity_type="CSW", net_amount="-20000")
        with replaying(bundle, venue.url, KEYS, tmp_path / "t", "t") as trader:
            trader.run(lambda: venue.bar >= START + 6)
            assert trader.state == "FINISHED" and trader.ledger.cash == venue.cash
            assert trader.flow_factor == pytest.approx(0.8, abs=0.01)


def test_cash_that_nothing_explains_halts(bundle, market, tmp_path):
    with LocalAlpaca(bundle.env(market, (START, STOP)), START, STOP) as venue:

        def steal() -> bool:
            if venue.bar == START + 5:
                tell(venue, activity_type="CSD", net_amount="500")
                venue.venue.books.receive(-40.0)
            return False

        with (
            replaying(bundle, venue.url, KEYS, tmp_path / "t", "t") as trader,
            pytest.raises(Unreconciled, match="books differ"),
        ):
            trader.run(steal)
        assert trader.state == "HALTED" and venue.bar == START + 6


# ------------------------------------------------------------------------------------------------- who else


def hold(folder: str, url: str, held, done) -> None:
    with sole_trader(url, "key", folder):
        held.set()
        done.wait(30)


def test_an_account_has_one_trader_on_a_machine(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    url = f"https://venue.example/{tmp_path.name}"
    other = context.Process(target=hold, args=(str(tmp_path / "first"), url, held, done))
    other.start()
    assert held.wait(60)
    with pytest.raises(InputError, match="traded already, by pid") as refused, sole_trader(url, "key", tmp_path / "b"):
        pass
    assert str(tmp_path / "first") in str(refused.value) and "\n" not in str(refused.value)
    with sole_trader(url, "another key", tmp_path / "b"):
        pass
    done.set()
    other.join(30)
    with sole_trader(url, "key", tmp_path / "b"):
        pass


def test_two_traders_of_one_account_are_told_at_the_start(bundle, market, tmp_path):
    with (
        LocalAlpaca(bundle.env(market, (START, STOP)), START, STOP) as venue,
        replaying(bundle, venue.url, KEYS, tmp_path / "one", "one"),
        pytest.raises(InputError, match="traded already"),
        replaying(bundle, venue.url, KEYS, tmp_path / "two", "two"),
    ):
        pass


@pytest.mark.parametrize("ended", [False, True])
def test_a_trader_of_another_machine_shows_by_its_orders(bundle, market, tmp_path, ended):
    with LocalAlpaca(bundle.env(market, (START, STOP)), START, STOP) as venue:
        newest = int(market.timestamps[START])
        name = f"0123456789ab-{newest}-A"
        order = venue.venue.submit(
            {"symbol": "A", "qty": "1", "side": "buy", "type": "market", "time_in_force": "day",
             "client_order_id": name}
        )  # fmt: skip
        if ended:
            venue.venue.cancel(order["id"])
        with (
            replaying(bundle, venue.url, KEYS, tmp_path / "t", "t") as trader,
            pytest.raises(InputError, match=f"order {name} of this account is another trader's"),
        ):
            trader.run()
        assert [o["client_order_id"] for o in venue.orders] == [name], "nothing was sent"
        if ended:  # once the bar is over it says nothing of who runs now
            venue.advance()
            with replaying(bundle, venue.url, KEYS, tmp_path / "t", "t") as trader:
                trader.run(lambda: venue.bar >= START + 4)
                assert trader.state == "FINISHED"
