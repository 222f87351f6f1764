"""Replay: what is kept, what n steps are worth, and how often each transition is drawn."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from drl_agents.rollout.buffer import Rollout
from drl_agents.rollout.replay import FIELDS, Replay
from environments.errors import InputError


def rollout_of(first: int, steps: int, n_envs=2, n_members=1, each_clock=1, rows=None, ends=None) -> Rollout:
    """Steps `first`.. of environments whose state is 100 * environment + step, reward the step, bar 10 * clock + step.

    ends: {(step, environment): "terminated" or "truncated"}; the episode goes on from the same numbers.
    """
    env = SimpleNamespace(
        n_envs=n_envs, n_members=n_members, envs_per_clock=each_clock, state_size=1, device=torch.device("cpu"),
        rows=rows, lookback=1,
    )  # fmt: skip
    rollout = Rollout(env, steps, (1,), torch.float32)
    step = torch.arange(first, first + steps + 1, dtype=torch.float32).unsqueeze(1)
    base = 100.0 * torch.arange(n_envs)
    rollout.state[..., 0] = base + step
    rollout.final_state[..., 0] = base + step[1:] + 0.5  # unlike what is seen next, so that they are told apart
    rollout.reward.copy_(step[:-1].expand(-1, n_envs))
    rollout.action[..., 0] = -rollout.state[:-1, :, 0]
    if rows is not None:
        clock = 10 * torch.arange(n_envs // each_clock)
        rollout.bar.copy_(clock + step.long())
        rollout.final_bar.copy_(clock + step[1:].long() + 5)
    for (at, env), way in (ends or {}).items():
        if first <= at < first + steps:
            getattr(rollout, way)[at - first, env] = True
    return rollout


def filled(ends=None, steps=6, size=100, **kwargs) -> Replay:
    replay = Replay(rollout_of(0, steps, ends=ends, **kwargs), size)
    replay.push(rollout_of(0, steps, ends=ends, **kwargs))
    return replay


def batch(replay, index, gamma=0.5, n_step=1):
    index = torch.tensor(index).view(replay.n_members, -1)
    column = torch.full((replay.n_members, 1), gamma)
    return replay.batch(index, torch.ones(index.shape), column, n_step)


def test_one_step_is_what_was_seen():
    replay = filled({(2, 0): "terminated", (3, 1): "truncated"})
    got = batch(replay, [0, 1, 4, 7])  # steps 0, 0, 2, 3 of environments 0, 1, 0, 1
    assert got.state[0, :, 0].tolist() == [0, 100, 2, 103]
    assert got.action[0, :, 0].tolist() == [0, -100, -2, -103]
    assert got.next_state[0, :, 0].tolist() == [1.5, 101.5, 3.5, 104.5]
    assert got.reward[0].tolist() == [0, 0, 2, 3]
    # Nothing follows where the episode terminated; what was only cut short is continued by the value of its last state.
    assert got.discount[0].tolist() == [0.5, 0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("step", "reward", "discount", "next_state"),
    [
        (0, 0 + 0.5 * 1 + 0.25 * 2, 0.125, 3.5),  # three whole steps, the third ends the episode by time
        (1, 1 + 0.5 * 2, 0.25, 3.5),  # truncated after two: gamma^2 V(its true last observation)
        (2, 2, 0.5, 3.5),
        (3, 3 + 0.5 * 4, 0.0, 5.5),  # terminated after two: nothing follows
        (4, 4, 0.0, 5.5),
        (5, 5 + 0.5 * 6 + 0.25 * 7, 0.125, 8.5),
        (6, 6 + 0.5 * 7, 0.25, 8.5),  # what was seen ends: as if truncated there
        (7, 7, 0.5, 8.5),
    ],
)
def test_three_steps(step, reward, discount, next_state):
    replay = filled({(2, 0): "truncated", (4, 0): "terminated"}, steps=8)
    got = batch(replay, [2 * step], n_step=3)
    assert got.reward.item() == pytest.approx(reward)
    assert got.discount.item() == pytest.approx(discount)
    assert got.next_state.item() == next_state


def test_the_ring_forgets_the_oldest_and_never_crosses_its_seam():
    replay = Replay(rollout_of(0, 3), 10)  # five steps of two environments
    for first in (0, 3, 6):
        replay.push(rollout_of(first, 3))
    assert replay.size == 10 and sorted(replay.state[:, 0, 0].tolist()) == [4, 5, 6, 7, 8]
    for at in range(5):
        got = batch(replay, [2 * at], n_step=4, gamma=1.0)
        first = got.state.item()
        steps = min(4, 9 - first)
        assert got.next_state.item() == first + steps + 0.5
        assert got.reward.item() == sum(first + k for k in range(int(steps)))


def test_environments_begun_anew_are_not_continued():
    replay = Replay(rollout_of(0, 3), 100)
    replay.push(rollout_of(0, 3))
    replay.push(rollout_of(50, 3))  # not where it stopped
    got = batch(replay, [2 * 2], n_step=3)
    assert got.reward.item() == 2 and got.next_state.item() == 3.5 and got.discount.item() == 0.5
    replay.push(rollout_of(53, 3))
    assert batch(replay, [2 * 5], n_step=3).next_state.item() == 55.5


def test_members_draw_from_their_own_environments_and_clocks_are_shared():
    rows = torch.zeros(100, 1)
    replay = filled(n_envs=8, n_members=2, each_clock=2, rows=rows, steps=3)
    got = batch(replay, [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]])
    assert got.state[..., 0].tolist() == [[0, 100, 200, 300, 1], [400, 500, 600, 700, 401]]
    assert got.bar.tolist() == [[0, 0, 10, 10, 1], [20, 20, 30, 30, 21]]
    assert got.next_bar.tolist() == [[6, 6, 16, 16, 7], [26, 26, 36, 36, 27]]


def test_uniform_draws_are_uniform_and_each_members_own():
    replay = filled(n_envs=4, n_members=2, steps=10)
    draws = replay.draws([torch.Generator().manual_seed(s) for s in (1, 2)], 400, 50)
    assert draws.shape == (400, 2, 50) and replay.size == 20
    counts = torch.stack([draws[:, p].flatten().bincount(minlength=20) for p in (0, 1)]).double()
    expected = 400 * 50 / 20
    # Chi-squared with 19 degrees of freedom is above 43.8 once in a thousand.
    assert bool((((counts - expected) ** 2 / expected).sum(1) < 43.8).all())
    alone = filled(n_envs=2, steps=10).draws([torch.Generator().manual_seed(2)], 400, 50)
    assert torch.equal(alone[:, 0], draws[:, 1])
    index, weight = replay.draw(draws[0])
    assert torch.equal(index, draws[0]) and bool((weight == 1).all())


def prioritized(alpha: float) -> Replay:
    rollout = rollout_of(0, 4)
    replay = Replay(rollout, 8, alpha)
    replay.push(rollout)
    return replay


def test_prioritised_draws_follow_the_errors():
    replay = prioritized(0.5)
    errors = torch.tensor([[1.0, -4.0, 0.0, 9.0, 16.0, 0.25, 1.0, 25.0]])
    replay.reprioritize(torch.arange(8).unsqueeze(0), errors)
    chance = (errors.abs() + 1e-6).sqrt()
    chance = (chance / chance.sum())[0]
    draws = replay.draws([torch.Generator().manual_seed(0)], 200, 100)
    counts = torch.zeros(8)
    for row in draws:
        index, weight = replay.draw(row, beta=0.7)
        counts += index[0].bincount(minlength=8)
        expected = (8 * chance[index[0]]) ** -0.7
        assert_close(weight[0], expected / expected.max(), rtol=1e-4, atol=1e-6)
    assert_close(counts / counts.sum(), chance, rtol=0.02, atol=1e-3)


def test_what_is_new_is_as_likely_as_the_largest_error():
    replay = prioritized(1.0)
    assert replay.priority[0].tolist() == [1] * 8
    replay.reprioritize(torch.tensor([[0, 5]]), torch.tensor([[7.0, 2.0]]))
    replay.push(rollout_of(4, 2))  # steps 0 and 1, transitions 0 to 3, make room
    assert_close(replay.priority[0], torch.tensor([7.0, 7, 7, 7, 1, 2, 1, 1]))


def test_saved_and_restored_it_goes_on_the_same():
    replay = prioritized(0.6)
    replay.reprioritize(torch.tensor([[1, 2]]), torch.tensor([[3.0, 0.5]]))
    other = Replay(rollout_of(0, 4), 8, 0.6)
    other.load_state_dict(replay.state_dict())
    for one in (replay, other):
        one.push(rollout_of(4, 3, ends={(5, 1): "terminated"}))
    for name in (*(f for f in FIELDS if "bar" not in f), "priority", "largest", "after"):
        assert torch.equal(getattr(replay, name), getattr(other, name)), name
    assert (replay.head, replay.filled) == (other.head, other.filled)


def test_a_part_that_was_never_filled_is_not_saved():
    replay = filled(steps=3, size=1_000)
    assert replay.state_dict()["state"].shape == (3, 2, 1)
    other = Replay(rollout_of(0, 3), 1_000)
    other.load_state_dict(replay.state_dict())
    assert other.size == 6 and torch.equal(batch(other, [3]).state, batch(replay, [3]).state)


def test_a_buffer_smaller_than_a_rollout_is_refused():
    with pytest.raises(InputError, match=r"buffer_size=5: at least n_envs \* horizon_len = 6 is needed"):
        Replay(rollout_of(0, 3), 5)
