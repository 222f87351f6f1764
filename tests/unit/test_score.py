"""The composite score by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from drl_agents.evaluation.score import composite_score, stretch_returns
from environments.errors import InputError


def test_by_hand():
    score = composite_score(
        returns=[0.10, -0.02, 0.04, 0.0],
        rewards=[0.02, 0.0, 0.02, 0.0],
        bars_per_year=4,
        explained_variance=0.5,
        entropy=1.0 + math.log(0.6),
        first_entropy=1.0,
        approx_kl=0.03,
        clip_fraction=0.5,
    )
    gained, steady, variance, ratio, unrest = (part.value for part in score.parts)
    assert gained == pytest.approx(100 * 0.03 * 0.5)  # two of four stretches gained
    # mean 0.01, standard deviation 0.01 * 2 / sqrt(3): ratio sqrt(3) / 2, times sqrt(4)
    assert steady == pytest.approx(100 * math.tanh(math.sqrt(3) / 2))
    assert (variance, ratio) == (50, pytest.approx(60))
    assert unrest == pytest.approx((50 + 100) / 2)  # half above the usual KL; clip fraction more than twice the usual
    assert score.total == pytest.approx(0.4 * 1.5 + 0.2 * steady + 10 + 6 - 7.5)
    assert score.colour == "green" and score.to_dict()["score"] == score.total


def test_limits_and_what_is_undefined():
    score = composite_score([-0.5], [0.01, 0.01], 252, explained_variance=-9.0, entropy=5.0, first_entropy=1.0)
    values = [part.value for part in score.parts]
    assert values[0] == 0.0 and math.isnan(values[1]) and values[2:4] == [-100, 100] and math.isnan(values[4])
    assert score.total == pytest.approx(-20 + 10) and score.colour == "red"
    assert score.to_dict()["parts"]["normalised reward"] == {"value": None, "points": 0.0}
    assert composite_score([], [], 252).total == 0.0 and composite_score([], [], 252).colour == "yellow"
    calm = composite_score([0.1], [0.0, 0.1], 1, approx_kl=0.02, clip_fraction=0.2)
    assert calm.parts[-1].value == 0.0


def test_stretches():
    equity = 100 * np.cumprod([1, 1.1, 1.1, 0.5, 1.0, 2.0])
    np.testing.assert_allclose(stretch_returns(equity, 5), [0.1, 0.1, -0.5, 0.0, 1.0])
    assert np.prod(1 + stretch_returns(equity, 2)) == pytest.approx(equity[-1] / equity[0])
    assert stretch_returns(equity).size == 5
    with pytest.raises(InputError, match="at least 2"):
        stretch_returns([100.0])
