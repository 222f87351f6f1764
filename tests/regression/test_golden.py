"""Equity curves of five back-tests are what they were when they were written down."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.regression.make_golden import CASES, EVERY, FOLDER, run_case

TOLERANCE = 1e-9  # relative


@pytest.mark.parametrize("name", CASES)
def test_the_curve_is_the_one_that_was_kept(name):
    kept, now = json.loads((FOLDER / f"{name}.json").read_text()), run_case(name)
    # Prices that differ in the last digit have another fingerprint: that alone is no failure, but explains one.
    bars = "the same bars" if kept["fingerprint"] == now["fingerprint"] else f"OTHER BARS ({now['market']})"
    assert (now["bars"], now["n_trades"]) == (kept["bars"], kept["n_trades"]), bars
    have, want = np.array(now["equity"]), np.array(kept["equity"])
    assert have.shape == want.shape, bars
    error = np.abs(have / want - 1)
    assert error.max() < TOLERANCE, (
        f"{bars}: equity after {int((error >= TOLERANCE).argmax()) * EVERY} bars is the first that differs"
    )
    for figure in ("last_equity", "fees", "traded"):
        assert now[figure] == pytest.approx(kept[figure], rel=TOLERANCE), (figure, bars)


def test_the_kept_curves_say_something():
    """Each case trades, pays, gains and loses; no file is left over from a case that is gone."""
    files = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
    assert sorted(files) == sorted(CASES)
    for name, kept in files.items():
        equity = np.array(kept["equity"])
        assert kept["case"] == name and len(equity) == kept["bars"] // EVERY + 1 > 50
        assert kept["n_trades"] > 100 and kept["fees"] > 0 and np.isfinite(equity).all()
        moves = np.diff(equity)
        assert (moves > 0).sum() > 10 and (moves < 0).sum() > 10
