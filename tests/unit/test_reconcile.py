"""Journal, ledger and venue against each other, each case made by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from drl_agents.deployment.journal import ACCEPTED, AMBIGUOUS, INTENDED, NEVER_SENT, Journal
from drl_agents.deployment.ledger import Ledger, Unreconciled
from drl_agents.deployment.reconcile import late_arrivals, resolve
from environments.live.broker import BrokerUnavailable, Order, OrderResult, Slack
from environments.margin import MarginTerms

NEWEST = 200
MARK = torch.tensor([[10.0, 100.0]], dtype=torch.float64)


@dataclass
class Venue:
    """What it knows by id."""

    orders: dict[str, OrderResult] = field(default_factory=dict)
    down: bool = False

    def lookup(self, order: Order) -> OrderResult | None:
        if self.down:
            raise BrokerUnavailable("down")
        return self.orders.get(order.client_order_id)


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path, {"symbols": ["A"]})
    yield journal
    journal.close()


def order(bar: int, side: str = "buy", quantity: float = 2.0, symbol: str = "A") -> Order:
    return Order(f"m-{bar}-{symbol}-{side}", symbol, side, quantity)


def result(known: Order, filled: float, value: float, fees: float = 0.0, **more) -> OrderResult:
    return OrderResult(known, "filled", filled, value, fees, **more)


def states(journal: Journal) -> dict[str, str]:
    return dict(journal._db.execute("SELECT id, state FROM orders"))


@pytest.mark.parametrize("state", [INTENDED, AMBIGUOUS])
def test_unheard_of_orders_by_their_bar(journal, state):
    old, new, held = order(100), order(NEWEST), order(NEWEST, "sell")
    journal.intend(old, 100, 100)
    journal.intend(new, NEWEST, NEWEST)
    journal.intend(held, NEWEST, None)
    for known in (old, new):
        journal.mark(known.client_order_id, state)
    found = resolve(Venue(), journal, NEWEST)
    assert [known.order for known in found.resend] == [new] and found.found == []
    assert states(journal) == {
        old.client_order_id: NEVER_SENT,
        new.client_order_id: state,
        held.client_order_id: "held",
    }


@pytest.mark.parametrize("state", [INTENDED, AMBIGUOUS, ACCEPTED])
def test_what_the_venue_has_is_taken_over(journal, state):
    known = order(100)
    journal.intend(known, 100, 100)
    journal.mark(known.client_order_id, state)
    told = result(known, 2.0, 21.0)
    found = resolve(Venue({known.client_order_id: told}), journal, NEWEST)
    assert found.found == [told] and found.resend == []


def test_an_order_it_took_and_does_not_know_is_refused(journal):
    journal.intend(order(100), 100, 100)
    journal.mark(order(100).client_order_id, ACCEPTED)
    with pytest.raises(Unreconciled, match="does not know order m-100-A-buy"):
        resolve(Venue(), journal, NEWEST)


def test_no_answer_is_not_an_empty_one(journal):
    journal.intend(order(100), 100, 100)
    with pytest.raises(BrokerUnavailable):
        resolve(Venue(down=True), journal, NEWEST)
    assert states(journal) == {order(100).client_order_id: INTENDED}


def test_orders_that_arrive_after_all(journal):
    lost, older = order(150), order(50)
    for known, bar in ((lost, 150), (older, 50)):
        journal.intend(known, bar, bar)
        journal.mark(known.client_order_id, NEVER_SENT, "", ended=True)
    for bar in (50, 100, 150):
        journal.bar(bar, 1.0, 1.0, {}, True)
    told = result(lost, 1.0, 10.0)
    assert late_arrivals(Venue({lost.client_order_id: told}), journal, 2) == [told]


# ---------------------------------------------------------------------------------------------- the ledger


def ledger(cash: float = 1_000.0, **margin) -> Ledger:
    return Ledger(["A", "B"], MarginTerms(**margin), cash)


def test_a_bar_by_hand():
    """Buy 10 A at 10 for 100 and costs of 1; sell 4 of them at 12 for 48 and costs of 0.5."""
    books = ledger()
    assert books.settle([result(order(1, quantity=10.0), 10.0, 100.0, 1.0)], MARK) is False
    assert (books.cash, books.positions, books.fees) == (899.0, {"A": 10.0, "B": 0.0}, 1.0)
    assert books.account.entry.tolist() == [[10.0, 0.0]] and books.account.idle.tolist() == [[0.0, 1.0]]
    books.settle([result(order(2, "sell", 4.0), 4.0, 48.0, 0.5)], MARK)
    assert (books.cash, books.positions["A"], books.fees) == (946.5, 6.0, 1.5)
    assert books.equity(MARK) == 946.5 + 60.0


def test_prices_with_costs_in_them_are_booked_at_the_bars_price():
    """10 A bought at 10.1 where the bar opened at 10: worth 100, costs 1. 5 sold at 9.9, fee 0.2: costs 0.7."""
    price = np.array([10.0, np.nan])
    books = ledger()
    books.settle([result(order(1, quantity=10.0), 10.0, 101.0)], MARK, price)
    assert (books.cash, books.fees, books.account.entry[0, 0].item()) == (899.0, pytest.approx(1.0), 10.0)
    books.settle([result(order(2, "sell", 5.0), 5.0, 49.5, 0.2)], MARK, price)
    assert books.cash == pytest.approx(899.0 + 49.5 - 0.2) and books.fees == pytest.approx(1.7)
    # No bar, no price: as it was told.
    books.settle([result(order(3, quantity=1.0, symbol="B"), 1.0, 90.0)], MARK, price)
    assert books.account.entry[0, 1].item() == 90.0


def test_books_within_the_slack_are_taken_over():
    books, slack = ledger(), Slack(units=1e-9, cash=0.02, of_traded=0.01)
    books.settle([result(order(1, quantity=10.0), 10.0, 100.0)], MARK)  # 1% of 100 may be fees nobody told of
    books.reconcile(899.02, {"A": 9.91}, slack, MARK)
    assert (books.cash, books.positions) == (899.02, {"A": 9.91, "B": 0.0})
    assert books.fees == pytest.approx(0.98)
    # In a bar without a trade nothing but rounding is forgiven.
    books.settle([], MARK)
    books.reconcile(899.03, {"A": 9.91}, slack, MARK)
    for cash, positions in (
        (899.2, {"A": 9.91}),
        (899.03, {"A": 9.90}),
        (899.03, {}),
        (899.03, {"A": 9.91, "B": 1e-3}),
    ):
        with pytest.raises(Unreconciled, match="the broker's books differ"):
            books.reconcile(cash, positions, slack, MARK)


def test_what_is_taken_over_adds_up():
    """0.3 less cash than was booked; then 0.02 units more of A (at 10), 0.001 less of B (at 100): 0.3 + 0.2 + 0.1."""
    books, slack = ledger(), Slack(units=1e-9, cash=0.02, of_traded=0.01)
    held = {"A": 10.0, "B": 1.0}
    books.settle([result(order(1, quantity=10.0), 10.0, 100.0)], MARK)
    books.settle([result(order(2, quantity=1.0, symbol="B"), 1.0, 100.0)], MARK)
    books.reconcile(799.7, held, slack, MARK)
    assert books.adopted == pytest.approx(0.3)
    kept = books.snapshot()
    books.settle([result(order(3, quantity=2.0), 2.0, 20.0)], MARK)
    books.reconcile(books.cash, {"A": 12.02, "B": 0.999}, slack, MARK)
    assert books.adopted == pytest.approx(0.3 + 0.2 + 0.1)
    again = ledger()
    again.restore(books.to_dict())
    assert again.adopted == books.adopted
    books.put_back(kept)
    assert books.adopted == pytest.approx(0.3)
    older = books.to_dict()
    del older["taken_over"]
    again.restore(older)
    assert again.adopted == 0.0
    # Rounding, up and down, comes to nothing.
    books = ledger()
    for cash in (1_000.01, 1_000.0, 999.99, 1_000.0):
        books.reconcile(cash, {}, slack, MARK)
    assert books.adopted == pytest.approx(0.0, abs=1e-9)
    # What was booked for a loan and is not charged has its reason.
    books = ledger(300.0, margin=2.0, shorting=True, borrow_bps=25_200.0)
    books.settle([result(order(1, "sell", 20.0), 20.0, 200.0)], MARK)
    books.reconcile(500.0, {"A": -20.0}, slack, MARK)
    assert books.adopted == 0.0


def test_exact_books_forgive_rounding_alone():
    books = ledger()
    books.settle([result(order(1, quantity=10.0), 10.0, 100.0)], MARK)
    books.reconcile(900.0 + 1e-7, {"A": 10.0 * (1 + 1e-10)}, Slack(), MARK)
    assert books.cash == 900.0, "and take nothing over"
    wrong = [(900.01, {"A": 10.0}), (900.0, {"A": 10.00001}), (float("nan"), {"A": 10.0})]
    for cash, positions in (*wrong, (900.0, {"A": 10.0, "Z": 1.0})):
        with pytest.raises(Unreconciled):
            books.reconcile(cash, positions, Slack(), MARK)


def test_books_come_back():
    books = ledger()
    books.settle([result(order(1, quantity=10.0), 10.0, 100.0, 1.0)], MARK)
    again = ledger(0.0)
    again.restore(books.to_dict())
    assert again.to_dict() == books.to_dict() and again.fees == 1.0


def test_a_margin_account_pays_and_is_closed_by_force():
    """Short 20 A at 10 with 300: worth 300; at 24 it owes 480, is worth 20, and 30% of 480 is 144."""
    books = ledger(100.0, margin=2.0, shorting=True, borrow_bps=252.0)
    assert books.settle([result(order(1, "sell", 20.0), 20.0, 200.0)], MARK) is False
    assert books.cash == pytest.approx(300.0 - 200.0 * 252e-4 / 252) and books.positions["A"] == -20.0
    dear = torch.tensor([[24.0, 100.0]], dtype=torch.float64)
    assert books.settle([], dear) is True
    books.force_closed(15.0)
    assert (books.cash, books.positions, books.equity(dear)) == (15.0, {"A": 0.0, "B": 0.0}, 15.0)


def test_what_an_account_holds_is_taken_over():
    books = ledger(500.0)
    books.take_over({"B": 2.0}, MARK)
    assert books.equity(MARK) == 700.0 and books.account.entry.tolist() == [[0.0, 100.0]]


def test_what_a_loan_costs_is_the_venues_to_say():
    """Short 20 A for 200 at 252% a year: 2 a day, which a paper account does not charge. A replay does, exactly."""
    for slack, forgiven in ((Slack(units=1e-9, cash=0.02, of_traded=0.01), True), (Slack(), False)):
        books = ledger(300.0, margin=2.0, shorting=True, borrow_bps=25_200.0)
        books.settle([result(order(1, "sell", 20.0), 20.0, 200.0)], MARK)
        books.reconcile(books.cash, {"A": -20.0}, slack, MARK)
        before = books.cash
        books.settle([], MARK)
        assert books.cash == pytest.approx(before - 2.0)
        if not forgiven:
            with pytest.raises(Unreconciled):
                books.reconcile(before, {"A": -20.0}, slack, MARK)
            continue
        books.reconcile(before, {"A": -20.0}, slack, MARK)
        assert books.cash == before
        books.settle([], MARK)
        with pytest.raises(Unreconciled):
            books.reconcile(before - 4.1, {"A": -20.0}, slack, MARK)
