"""The gate's calibration in small: a few of its markets, the whole way through study, refit and gate.

`scripts/calibrate_gate.py` gives the rates over hundreds; here each market is one whose verdict is known, and the
figures the rates rest on are held against what is known of them.
"""

from __future__ import annotations

import json

import pytest

from drl_agents.deployment.calibration import (
    EDGE,
    NOISES,
    Pipeline,
    best_rule,
    judge_market,
    read_lines,
    summary,
    wilson,
    world,
)
from environments.errors import InputError
from scripts import calibrate_gate
from scripts.calibrate_gate import Options

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def edge() -> dict:
    return judge_market("edge", 0, Pipeline())


def test_an_edge_is_deployed(edge):
    assert edge["passed"] and edge["failed"] == [] and edge["world"] == "edge"
    assert edge["checks"]["Sharpe ratio against holding equal weight"] > 1.5
    assert edge["checks"]["deflated Sharpe ratio"] >= 0.95


@pytest.mark.parametrize("index", [1, 2])
def test_noise_is_not(index):
    """With three and four trials, where the deflated Sharpe ratio deflates least."""
    line = judge_market("noise", index, Pipeline(timesteps=3_072))
    assert not line["passed"] and line["failed"] and line["trials"] == 2 + index
    assert line["world"] == list(NOISES)[index]


def test_the_planted_edge_is_an_annual_sharpe_ratio_of_three():
    found = best_rule(EDGE)
    assert abs(found["sharpe"] - 3) < 2.5 * found["standard_error"] < 0.25
    # The same rules find nothing in a signal that leads nothing.
    assert best_rule({**EDGE, "ic": 0.0})["sharpe"] < 0.5


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (1, 200, 0.0009, 0.0278), (200, 200, 0.9812, 1.0)],
)
def test_wilson_by_the_published_table(successes, n, low, high):
    """Newcombe, "Two-sided Confidence Intervals for the Single Proportion", 1998, method 3, and by hand."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_proportion(successes, n):
    with pytest.raises(InputError, match="no more successes than draws"):
        wilson(successes, n)


def line(kind: str, index: int, passed: bool) -> dict:
    failed = [] if passed else ["trades"]
    return {
        "kind": kind,
        "index": index,
        "world": world(kind, index)[0],
        "trials": 2,
        "passed": passed,
        "failed": failed,
    }


def test_the_rates_are_counts():
    lines = [line("noise", i, i == 3) for i in range(6)] + [line("edge", i, i < 3) for i in range(4)]
    rates = summary(lines)
    assert (rates["noise"]["deployed"], rates["noise"]["markets"], rates["noise"]["rate"]) == (1, 6, 0.1667)
    assert rates["edge"]["rate"] == 0.75 and rates["edge"]["failed"] == {"trades": 1}
    assert rates["noise"]["by_world"]["no drift"]["markets"] == 2
    assert rates["noise"]["interval_95"] == [round(x, 4) for x in wilson(1, 6)]


def test_a_measurement_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    asked = []

    def known(kind, index, pipeline):
        asked.append((kind, index))
        return {**line(kind, index, kind == "edge"), "seconds": 1.0}

    monkeypatch.setattr(calibrate_gate, "judge_market", known)
    monkeypatch.setattr(calibrate_gate, "best_rule", lambda options: {"sharpe": 3.0})
    record, table = tmp_path / "record.jsonl", tmp_path / "table.json"
    first = Options(noise=3, edge=1, record=record, table=table, minutes=0.0)
    calibrate_gate.main(first)
    assert asked == [] and not table.exists()
    calibrate_gate.main(Options(noise=2, edge=1, record=record))
    with record.open("a") as file:
        file.write('{"kind": "noise", "ind')  # cut short by a kill
    assert len(read_lines(record, Pipeline())) == 3 and read_lines(record, Pipeline(bars=1_400)) == []
    calibrate_gate.main(Options(noise=3, edge=1, record=record, table=table))
    assert sorted(asked) == [("edge", 0), ("noise", 0), ("noise", 1), ("noise", 2)]
    kept = json.loads(table.read_text())
    assert kept["noise"]["rate"] == 0.0 and kept["edge"]["rate"] == 1.0 and kept["limits"]["max_p_value"] == 0.05
    assert "4 of 4" not in capsys.readouterr().out
