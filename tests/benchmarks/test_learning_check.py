"""What the learning check says: pairs by seed against known answers, and whether what is fast learns."""

from __future__ import annotations

import math

import pytest
import torch

from drl_agents.benchmark import learning
from drl_agents.benchmark.learning import learned_return, learning_results, quoted, reference_of
from drl_agents.benchmark.paired import critical_t, paired, two_sided_p
from drl_agents.benchmark.report import as_text
from drl_agents.benchmark.work import Configuration, Work
from drl_agents.benchmark.workloads import EAGER

TINY = Work(n_assets=3, n_bars=400, episode_length=50, hidden=(8,), samples=192)


def test_pairs_by_hand():
    """Differences 1, 2, 3: their mean is 2, its standard error 1 / sqrt(3), and t of 2 degrees 4.302653 at 5%."""
    result = paired([2.0, 7.0, 4.0], [1.0, 5.0, 1.0])
    assert (result.difference, result.degrees) == (2.0, 2)
    assert result.t == pytest.approx(2 * math.sqrt(3))
    assert result.p == pytest.approx(1 - 2 * math.sqrt(3) / math.sqrt(2 + 12))  # see two degrees below
    reach = 4.302653 / math.sqrt(3)
    assert result.interval == pytest.approx((2 - reach, 2 + reach), abs=1e-6)
    same, worse = paired([1.0, 2.0], [1.0, 2.0]), paired([1.0, 2.0], [2.0, 3.0])
    assert (same.t, same.p, same.interval) == (0.0, 1.0, (0.0, 0.0))
    assert (worse.t, worse.p, worse.interval) == (-math.inf, 0.0, (-1.0, -1.0))
    # Seeds that differ by far more than the two treatments do hide nothing.
    assert paired([0.1, 0.5, 0.9, 1.3], [0.11, 0.52, 0.91, 1.32]).p < 0.02


def test_the_interval_excludes_zero_where_the_test_rejects():
    for shift in (0.1, 0.3, 0.5, 1.0, 3.0):
        found = paired([shift + x for x in (0.0, 0.5, -0.5, 0.2)], [0.0] * 4, confidence=0.99)
        low, high = found.interval
        assert (low <= 0 <= high) == (found.p >= 0.01)


@pytest.mark.parametrize(
    "t,degrees,p",
    [
        (0.0, 5, 1.0),
        (1.0, 1, 0.5),  # Cauchy: 1 - 2 atan(1) / pi
        (-2.0, 2, 1 - 2 / math.sqrt(6)),  # two degrees: 1 - |t| / sqrt(2 + t^2)
        (2.228139, 10, 0.05),  # tables of Student's t
        (2.878440, 18, 0.01),
        (12.706205, 1, 0.05),
    ],
)
def test_students_t(t, degrees, p):
    assert two_sided_p(t, degrees) == pytest.approx(p, abs=1e-6)
    if 0 < p < 1:
        assert critical_t(p, degrees) == pytest.approx(abs(t), abs=1e-4 * abs(t))


def test_the_reference_is_the_same_work_done_eagerly():
    fast = Configuration("fast", 64, env={"lookback": 4, "clock_groups": 8}, agent={"amp": "bf16"})
    slow = reference_of(fast)
    assert (slow.n_envs, slow.env, slow.agent) == (64, {"lookback": 4}, {"amp": "off", "compile": "off"})
    names = {c.name for c in quoted(torch.device("cpu"))}
    assert {"ours 12", "ours 64 bf16", "ours 2048 bf16 clock 64", "lookback 64", "transformer over 64 bars"} <= names
    assert not names & {"ours 1", "sb3 12", "environment 1024"}


def test_each_is_compared_with_its_own_reference(monkeypatch):
    """Two that differ in their network alone are two; seeds are paired; rows and the text say what was found."""
    trained = []

    def learned(configuration, seed, work, iterations, device):
        trained.append(configuration.name)
        loss = 0.02 + 0.002 * seed if configuration.env else 0.0
        return (0.8 if configuration.network else 0.5) + 0.1 * seed - loss

    monkeypatch.setattr(learning, "learned_return", learned)
    clocks = {"clock_groups": 8}
    both = [Configuration("mlp", 64, env=clocks), Configuration("own", 64, env=clocks, network={"network": "gru"})]
    rows = learning_results(both, range(4), TINY, 1, torch.device("cpu"))
    assert sorted(set(trained)) == ["mlp", "mlp: eager fp32", "own", "own: eager fp32"]
    for row, mean in zip(rows, (0.65, 0.95), strict=True):
        assert row["reference_mean"] == pytest.approx(mean) and row["difference"] == pytest.approx(-0.023)
        # Differences of -0.020, -0.022, -0.024, -0.026: far from noise, though the seeds lie 0.1 apart.
        assert row["degrees"] == 3 and row["p"] < 1e-3 and row["within_noise"] is False
        low, high = row["difference_interval"]
        assert low < -0.023 < high < 0 and row["confidence"] == 0.99
    text = as_text({"workloads": {}, "learning": {"configurations": rows}, "quotable": True})
    assert text.count("difference by seed -0.023 (-0.031 to -0.015), p = 0.000: NOT the same") == 2


def test_what_is_learned_is_a_share_of_the_planted_edge(one_thread, monkeypatch):
    """A little training earns a good part of it, none next to nothing; the reference itself is the same as itself."""
    monkeypatch.setattr(learning, "END", learning.SPLIT + 800)  # a shorter walk
    work, eager = Work(hidden=(16,), samples=2_048), Configuration("eager", 64, agent=EAGER)
    assert abs(learned_return(eager, 1, work, iterations=0)) < 0.2
    (row,) = learning_results([eager], [1, 2], work, 12, torch.device("cpu"))
    assert row["status"] == "reference" and all(0.25 < share < 1.2 for share in row["returns"])
    first, second = row["returns"]
    assert row["mean"] == pytest.approx((first + second) / 2)
    assert row["standard_error"] == pytest.approx(abs(first - second) / 2)
    assert row["returns"] == row["reference_returns"] and row["paired_t"] == 0.0 and row["within_noise"]
