"""The PPO loss against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from drl_agents.agents.ppo import AgentPPO, PPOConfig, ppo_loss
from drl_agents.networks.policy import PolicySpec
from environments.errors import InputError


def loss_of(ratios, advantages, *, clip=0.2, entropy=0.0, value=0.0, returns=0.0, ent_coef=0.0, vf_coef=0.0):
    """(loss, parts, d loss / d log_prob) of one member with the given probability ratios."""
    ratio = torch.tensor([ratios], dtype=torch.float64)
    old = torch.zeros_like(ratio)
    log_prob = ratio.log().requires_grad_()
    advantage = torch.tensor([advantages], dtype=torch.float64)
    full = torch.full_like(ratio, 1.0)
    loss, parts = ppo_loss(
        log_prob, old, full * entropy, full * value, advantage, full * returns, clip, ent_coef, vf_coef
    )
    loss.sum().backward()
    return loss.item(), {name: part.item() for name, part in parts.items()}, log_prob.grad[0].tolist()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.5, 2.0, -2.4, 0.0),  # better and already 20% likelier: min(3.0, 2.4), no more pull
        (0.5, 2.0, -1.0, -1.0),  # better but less likely: min(1.0, 1.6), full pull
        (1.5, -2.0, 3.0, 3.0),  # worse and likelier: min(-3.0, -2.4), the pessimistic one, full push
        (0.5, -2.0, 1.6, 0.0),  # worse and already 20% less likely: min(-1.0, -1.6), no more push
        (1.1, 2.0, -2.2, -2.2),  # inside the clip the two agree
        (0.9, -2.0, 1.8, 1.8),
        (1.0, 2.0, -2.0, -2.0),  # the first step, where both branches are equal: the gradient is counted once
    ],
)
def test_clipped_surrogate(ratio, advantage, expected, slope):
    loss, parts, gradient = loss_of([ratio], [advantage])
    assert loss == pytest.approx(expected)
    assert parts["policy_loss"] == pytest.approx(expected)
    assert gradient == pytest.approx([slope])


def test_entropy_lowers_the_loss():
    loss, parts, _ = loss_of([1.0], [0.0], entropy=3.0, ent_coef=0.1)
    assert (loss, parts["entropy"]) == pytest.approx((-0.3, 3.0))


def test_value_loss_is_half_the_squared_error_times_its_coefficient():
    loss, parts, _ = loss_of([1.0], [0.0], value=1.0, returns=4.0, vf_coef=0.5)
    assert (loss, parts["value_loss"]) == pytest.approx((0.5 * 4.5, 4.5))


def test_all_terms_together_are_means_over_samples():
    loss, _, _ = loss_of([1.5, 0.5], [2.0, 2.0], entropy=3.0, ent_coef=0.1, value=1.0, returns=4.0, vf_coef=0.5)
    assert loss == pytest.approx((-2.4 - 1.0) / 2 - 0.3 + 2.25)


def test_kl_estimator_and_clip_fraction():
    _, parts, _ = loss_of([1.5, 0.5, 1.1, 1.0], [1.0] * 4)
    # mean of (r - 1) - ln r: the four r - 1 are .5, -.5, .1, 0
    expected = (0.1 - math.log(1.5) - math.log(0.5) - math.log(1.1)) / 4
    assert parts["approx_kl"] == pytest.approx(expected)
    assert parts["clip_fraction"] == pytest.approx(0.5)


def test_members_have_their_own_coefficients():
    ratio = torch.tensor([[1.5], [1.5], [1.5]]).double()
    ones = torch.ones_like(ratio)
    column = {
        "clip_coef": torch.tensor([[0.1], [0.2], [0.6]]).double(),
        "ent_coef": torch.tensor([[0.0], [0.1], [0.2]]).double(),
        "vf_coef": torch.tensor([[1.0], [0.5], [0.0]]).double(),
    }
    loss, parts = ppo_loss(ratio.log(), 0 * ones, ones, 0 * ones, ones, 2 * ones, **column)
    # -min(1.5, 1 + clip) - ent * 1 + vf * 2
    assert_close(loss, torch.tensor([-1.1 + 2.0, -1.2 - 0.1 + 1.0, -1.5 - 0.2]).double())
    assert parts["clip_fraction"].tolist() == [1.0, 1.0, 0.0]


def test_a_member_with_nan_leaves_the_others_alone():
    ratio = torch.tensor([[1.1], [math.nan]]).double()
    log_prob = ratio.log().requires_grad_()
    ones = torch.ones(2, 1).double()
    loss, _ = ppo_loss(log_prob, 0 * ones, ones, ones, ones, ones, 0.2, 0.0, 0.5)
    loss.sum().backward()
    assert loss[0].item() == pytest.approx(-1.1) and loss[1].isnan()
    assert log_prob.grad[0].item() == pytest.approx(-1.1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"gamma": 1.5},
        {"gamma": (0.9, float("nan"))},
        {"clip_coef": 0.0},
        {"horizon_len": 0},
        {"update_epochs": 0},
        {"target_kl": -1.0},
        {"learning_rate": (1e-3, -1e-3)},
    ],
)
def test_hyper_parameters_out_of_range_are_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))) as caught:
        PPOConfig(**wrong)
    assert "\n" not in str(caught.value)


def test_as_many_values_as_members_are_needed():
    with pytest.raises(InputError, match="gamma: 2 values for 3 members"):
        AgentPPO(PolicySpec(0, 1, 2, "box", 1), PPOConfig(gamma=(0.9, 0.99)), seeds=(1, 2, 3))
