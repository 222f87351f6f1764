"""Every fault of a venue, with and without a kill: the books are the broker's, no order twice, none lost."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from environments.live.alpaca_local.faults import FaultPlan
from tests.reference.trader_runs import START, STOP, check_books, reference

pytestmark = pytest.mark.usefixtures("one_thread")

# Of each kind: how often a request meets it, and further options of the plan.
FAULTS = {
    "delay": (0.25, {"seconds": 0.06}),
    "drop_request": (0.15, {}),
    "drop_reply": (0.15, {}),
    "429": (0.15, {}),
    "500": (0.15, {}),
    "503": (0.15, {}),
    "504": (0.15, {}),
    "missing_field": (0.15, {}),
    "unknown_enum": (0.15, {}),
    "stale_data": (0.4, {}),
    "late_reject": (0.3, {}),
}


def test_every_fault_with_and_without_a_kill(traders, venue, market, bundles, folder):
    """Whatever a request meets, the journal ends with the venue's books, mostly those of a calm venue."""
    bundle = bundles["plain"]
    whole = reference(traders, venue, market, bundle, folder / "whole")
    wrong, equal, runs, calm, met = [], 0, 0, 0, Counter()
    kinds = [*FAULTS, "all"]
    for seed in range(10 * len(kinds)):
        kind, draw = kinds[seed % len(kinds)], random.Random(seed)
        rates = {kind: FAULTS[kind][0]} if kind != "all" else {name: 0.03 for name in FAULTS}
        plan = FaultPlan(seed, rates, **FAULTS.get(kind, (0, {}))[1])
        venue.reset(bundle.env(market, (START, STOP)), START, STOP, seed=seed, faults=plan)
        place, facts = folder / str(seed), {"bundle": str(bundle.folder), "url": venue.url}
        if kind in ("delay", "all"):
            facts["timeout"] = [1.0, 0.03]
        kill_at = draw.randrange(1, whole["boundaries"]) if seed % 3 else None
        runs += 1
        first = traders.run(**facts, folder=str(place), kill_at=kill_at)
        venue.faults = FaultPlan()
        again = traders.run(**facts | {"timeout": [5.0, 5.0]}, folder=str(place))
        where = f"run {seed}, {kind}, killed at {kill_at}: "
        met.update(plan.counts)
        if again["status"] != "done" or (first["status"] == "failed" and "BrokerUnavailable" not in first["error"]):
            wrong.append(f"{where}{first.get('error')} {again.get('error')}")
            continue
        if "late_reject" not in plan.counts:  # it changes what is filled
            calm, equal = calm + 1, equal + (again["equity"] == whole["equity"])
        wrong += [where + problem for problem in check_books(venue, place)]
    assert not wrong, f"{len(wrong)} violations in {runs} runs:\n" + "\n".join(wrong[:20])
    assert min(met[kind] for kind in FAULTS) > 0 and met.total() > runs and equal > 0.9 * calm, (met, equal, calm)
