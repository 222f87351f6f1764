"""Advantages against hand-computed numbers and against the definition as a sum, in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from drl_agents.rollout.returns import explained_variance, gae


def column(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(1)


REWARD, VALUE, NEXT = column(1, 2, 3), column(0.5, 1, 1.5), column(1, 1.5, 2)


def flags(*ends: bool) -> torch.Tensor:
    return torch.tensor(ends).unsqueeze(1)


def test_an_episode_that_goes_on():
    # deltas 1 + .5*1 - .5 = 1, 2 + .5*1.5 - 1 = 1.75, 3 + .5*2 - 1.5 = 2.5, each carried back by .25
    advantage, returns = gae(REWARD, VALUE, NEXT, flags(False, False, False), 0.5, 0.5)
    assert_close(advantage, column(1.59375, 2.375, 2.5))
    assert_close(returns, column(2.09375, 3.375, 4.0))


def test_termination_bootstraps_nothing_and_stops_the_flow():
    # delta_1 = 2 + 0 - 1 = 1; nothing of step 2 reaches step 1
    advantage, _ = gae(REWARD, VALUE, column(1, 0, 2), flags(False, True, False), 0.5, 0.5)
    assert_close(advantage, column(1.25, 1.0, 2.5))


def test_truncation_bootstraps_its_final_value_and_stops_the_flow():
    # delta_1 = 2 + .5*4 - 1 = 3
    advantage, _ = gae(REWARD, VALUE, column(1, 4, 2), flags(False, True, False), 0.5, 0.5)
    assert_close(advantage, column(1.75, 3.0, 2.5))


def test_both_ends_side_by_side():
    """Environment 0 terminates at step 0 and is truncated at step 2 (final value 4), 1 the other way."""
    reward = torch.ones(3, 2, dtype=torch.float64)
    value = torch.zeros(3, 2, dtype=torch.float64)
    upcoming = torch.tensor([[0.0, 4.0], [0.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
    done = torch.tensor([[True, True], [False, False], [True, True]])
    advantage, _ = gae(reward, value, upcoming, done, 0.5, 0.5)
    # env 0: 1 | 1 + .25*3 = 1.75, 1 + .5*4 = 3.   env 1: 1 + .5*4 = 3 | 1 + .25*1 = 1.25, 1
    assert_close(advantage, torch.tensor([[1, 3], [1.75, 1.25], [3, 1]], dtype=torch.float64))


def test_lambda_zero_is_the_one_step_error():
    advantage, _ = gae(REWARD, VALUE, NEXT, flags(False, False, False), 0.5, 0.0)
    assert_close(advantage, column(1.0, 1.75, 2.5))


def test_lambda_one_is_the_discounted_sum_less_the_value():
    advantage, returns = gae(REWARD, VALUE, NEXT, flags(False, False, False), 0.5, 1.0)
    # R_2 = 3 + .5*2 = 4, R_1 = 2 + .5*4 = 4, R_0 = 1 + .5*4 = 3: the values in between cancel
    assert_close(returns, column(3.0, 4.0, 4.0))
    assert_close(advantage, column(2.5, 3.0, 2.5))


def test_each_environment_has_its_own_gamma_and_lambda():
    gamma, lam = torch.tensor([0.5, 0.9]).double(), torch.tensor([0.5, 1.0]).double()
    wide = [x.expand(3, 2).contiguous() for x in (REWARD, VALUE, NEXT)]
    done = torch.zeros(3, 2, dtype=torch.bool)
    advantage, _ = gae(*wide, done, gamma, lam)
    for j in range(2):
        alone, _ = gae(REWARD, VALUE, NEXT, done[:, :1], float(gamma[j]), float(lam[j]))
        assert_close(advantage[:, j : j + 1], alone)


def by_definition(reward, value, upcoming, done, gamma, lam):
    """A_t = sum over l >= 0 of (gamma lambda)^l delta_{t+l}, up to and with the first end at or after t."""
    steps = len(reward)
    delta = [reward[t] + gamma * upcoming[t] - value[t] for t in range(steps)]
    result = []
    for t in range(steps):
        total = 0.0
        for k in range(t, steps):
            total += (gamma * lam) ** (k - t) * delta[k]
            if done[k]:
                break
        result.append(total)
    return result


finite = st.floats(-100, 100, allow_nan=False)
share = st.floats(0, 1, allow_nan=False)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), steps=st.integers(1, 12), gamma=share, lam=share)
def test_equals_the_definition(data, steps, gamma, lam):
    draw = {name: data.draw(st.lists(finite, min_size=steps, max_size=steps)) for name in ("r", "v", "n")}
    done = data.draw(st.lists(st.booleans(), min_size=steps, max_size=steps))
    reward, value, upcoming = (column(*draw[name]) for name in ("r", "v", "n"))
    advantage, returns = gae(reward, value, upcoming, flags(*done), gamma, lam)
    expected = by_definition(draw["r"], draw["v"], draw["n"], done, gamma, lam)
    assert_close(advantage, column(*expected), rtol=1e-9, atol=1e-9)
    assert_close(returns, advantage + value)


def test_explained_variance_of_perfect_useless_and_constant():
    returns = torch.tensor([[1.0, 2, 3, 4], [1.0, 2, 3, 4], [5.0, 5, 5, 5], [1.0, 2, 3, 4]])
    value = torch.tensor([[1.0, 2, 3, 4], [2.5, 2.5, 2.5, 2.5], [1.0, 2, 3, 4], [4.0, 3, 2, 1]])
    # The last: returns - value = -3, -1, 1, 3, four times the variance: 1 - 4.
    assert explained_variance(value, returns, dim=1).tolist() == pytest.approx([1.0, 0.0, 0.0, -3.0])
