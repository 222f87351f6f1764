"""`kill -9` anywhere: the books are the broker's, no order goes out twice, none is lost."""

from __future__ import annotations

import random

import pytest

from tests.reference.trader_runs import START, STOP, check_books, reference

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", ["plain", "lagged"])
def test_killed_at_every_boundary(traders, venue, market, bundles, folder, kind):
    """Killed before or after any write, it goes on as if nothing had happened: the same orders, the same equity."""
    bundle = bundles[kind]
    whole = reference(traders, venue, market, bundle, folder / "whole")
    draw = random.Random(kind)
    moments = range(1, whole["boundaries"] + 1)
    if kind == "lagged":
        moments = sorted(draw.sample(moments, 40))
    wrong = []
    for moment in moments:
        place = folder / str(moment)
        venue.reset(bundle.env(market, (START, STOP)), START, STOP, seed=moment)
        killed = traders.run(bundle=str(bundle.folder), url=venue.url, folder=str(place), kill_at=moment)
        again = traders.run(bundle=str(bundle.folder), url=venue.url, folder=str(place))
        where = f"killed at {moment}, {whole['names'][moment - 1]}: "
        if killed["status"] != "killed" or again["status"] != "done":
            wrong.append(f"{where}{killed} {again.get('error')}")
            continue
        if again["equity"] != whole["equity"]:
            wrong.append(f"{where}equity {again['equity']}")
        orders = {o["client_order_id"]: (o["side"], o["qty"], o["filled_qty"]) for o in venue.orders}
        if orders != whole["orders"]:
            wrong.append(f"{where}orders {sorted(set(orders) ^ set(whole['orders']))}")
        wrong += [where + problem for problem in check_books(venue, place)]
    assert not wrong, f"{len(wrong)} violations in {len(moments)} runs:\n" + "\n".join(wrong[:20])
