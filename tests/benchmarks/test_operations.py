"""The count of operations that a slow-down is set against."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drl_agents.benchmark.operations import iteration_operations
from drl_agents.benchmark.race import Timing
from drl_agents.benchmark.results import target_value
from drl_agents.benchmark.work import Configuration, Work
from drl_agents.benchmark.workloads import WORKLOADS, Target

WORK = Work(n_assets=2, n_bars=300, episode_length=100, hidden=(8,), samples=64, update_epochs=1, num_minibatches=1)


def test_products_of_an_iteration_by_hand(one_thread):
    """One epoch and one minibatch of an MLP with a clock for each environment. Gradients: of the weights, and of what a
    layer reads where a layer is before it. A product with one column is counted though it is made twice."""
    configuration = Configuration("mlp", 8, env={"episode_length": 1_000})
    found = iteration_operations(configuration, WORK, WORK.market())
    seen, account, units = 2 * 11, 7 + 1, 8  # features, account and bias, of each network's layer
    rollout = 2 * 64 * units * (seen + account + 2)
    values = 2 * 72 * units * (seen + account + 2)
    update = 2 * 64 * (2 * 2 * units * (seen + account) + 3 * units * (2 + 2))
    assert found == rollout + values + update


def test_an_epoch_more_is_as_many_more(one_thread):
    (_, transformer) = WORKLOADS["transformer"].configurations
    own = replace(
        transformer, n_envs=8, env={"clock_groups": 4, "lookback": 5},
        network={"network": "lightweight", "d_model": 8, "n_heads": 2},
    )  # fmt: skip
    counts = [iteration_operations(own, replace(WORK, update_epochs=e), WORK.market()) for e in (1, 2, 3)]
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0


def test_a_slow_down_by_the_count():
    """Three times the time for twice the operations of a step."""
    slow = Timing("slow", "timed", steps=10, calls=1, seconds=[6.0, 6.0], operations=400)
    fast = Timing("fast", "timed", steps=20, calls=1, seconds=[4.0, 4.0], operations=400)
    target = Target("slow by count", "by count", ("slow", "fast"), 1.5)
    assert target.at_most and target_value(target, {"slow": slow, "fast": fast}) == pytest.approx(1.5)
