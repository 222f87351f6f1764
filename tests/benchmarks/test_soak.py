"""A short soak: the ledger does not drift, memory is flat, whatever fails. The long one is `tests.benchmarks.soak`."""

from __future__ import annotations

import pytest

from tests.benchmarks.soak import soak


@pytest.mark.slow
def test_a_soak_of_a_thousand_bars(tmp_path):
    measured = soak(1_000, 10, tmp_path, 300)
    assert measured["largest_drift_of_cash_or_units"] == 0.0
    # Books that are made the venue's at every bar cannot differ from it; they must not have had to be.
    assert measured["taken_over_from_the_venues_books_share_of_equity"] < 1e-9
    assert measured["orders_at_the_venue_unknown_to_the_journal"] == 0 < measured["orders_at_the_venue"]
    assert measured["restarts"] == {"clean": 3, "killed": 3} and sum(measured["faults"].values()) > 50
    assert measured["bars_booked"] + measured["bars_skipped"] == 999
    memory = measured["memory_mib"]
    assert memory["most"] - memory["first_quarter_end"] < 40, memory
