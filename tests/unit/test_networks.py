"""Distributions, normalisers, population layers and the flat optimiser against torch's own."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from drl_agents.agents.adam import FlatAdam
from drl_agents.networks.distributions import Categorical, DiagonalGaussian, distribution_for
from drl_agents.networks.normalizer import LIMIT, FixedNormalizer, RunningNormalizer
from drl_agents.networks.policy import ActorCritic, PolicySpec
from drl_agents.networks.population import MLP, FlatParameters, member_generators, member_state
from environments.errors import InputError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------ distributions


def test_gaussian_equals_torchs():
    head, log_std = torch.randn(2, 5, 3, generator=generator()), torch.tensor([[[-0.5, 0.0, 0.7]]])
    action = torch.randn(2, 5, 3, generator=generator(1))
    theirs = torch.distributions.Independent(torch.distributions.Normal(head, log_std.exp().expand_as(head)), 1)
    log_prob, entropy = DiagonalGaussian(3).log_prob_entropy(head, log_std, action)
    assert_close(log_prob, theirs.log_prob(action))
    assert_close(entropy, theirs.entropy())


def test_gaussian_samples_have_its_moments_and_their_own_log_prob():
    ours = DiagonalGaussian(2)
    head, log_std = torch.tensor([[1.0, -2.0]]).expand(200_000, 2), torch.tensor([0.5, 2.0]).log()
    action, log_prob = ours.sample(head, log_std, ours.noise((200_000,), generator()))
    assert_close(action.mean(0), head[0], rtol=0, atol=0.02)
    assert_close(action.std(0), torch.tensor([0.5, 2.0]), rtol=0.01, atol=0)
    assert_close(log_prob, ours.log_prob_entropy(head, log_std, action)[0], rtol=1e-5, atol=1e-4)


def test_categorical_equals_torchs():
    head, action = torch.randn(2, 5, 4, generator=generator()), torch.tensor([[0, 1, 2, 3, 0]] * 2)
    theirs = torch.distributions.Categorical(logits=head)
    log_prob, entropy = Categorical(4).log_prob_entropy(head, None, action)
    assert_close(log_prob, theirs.log_prob(action))
    assert_close(entropy, theirs.entropy())


def test_categorical_samples_have_its_frequencies():
    ours, share = Categorical(3), torch.tensor([0.7, 0.2, 0.1])
    head = share.log().expand(200_000, 3)
    action, log_prob = ours.sample(head, None, ours.noise((200_000,), generator()))
    assert_close(torch.bincount(action, minlength=3) / 200_000, share, rtol=0, atol=0.005)
    assert_close(log_prob, share.log()[action])


def test_categorical_never_picks_what_has_no_probability():
    head = torch.tensor([0.0, -60.0]).expand(100_000, 2)
    action, _ = Categorical(2).sample(head, None, Categorical(2).noise((100_000,), generator()))
    assert int(action.sum()) == 0


def test_modes():
    head = torch.tensor([[0.1, 3.0, -1.0]])
    assert DiagonalGaussian(3).mode(head) is head
    assert Categorical(3).mode(head).tolist() == [1]


@pytest.mark.parametrize(
    "space",
    [gymnasium.spaces.MultiBinary(3), gymnasium.spaces.Box(-1, 1, (2, 2)), gymnasium.spaces.Box(-1, 1, ())],
)
def test_other_action_spaces_are_refused(space):
    with pytest.raises(InputError, match="one-dimensional Box and Discrete"):
        distribution_for(space)


# -------------------------------------------------------------------------------------------- normalisers


def test_fixed_normalizer_by_hand():
    norm = FixedNormalizer(2, 2)
    norm.set(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[2.0, 4.0], [1.0, 1.0]]))
    x = torch.tensor([[5.0, torch.nan, 1e9, -1e9]]).expand(2, 1, 4)  # two rows of two, side by side
    assert norm(x).tolist() == [[[2.0, 0.0, LIMIT, -LIMIT]], [[5.0, 0.0, LIMIT, -LIMIT]]]


def test_infinities_end_at_the_limit():
    x = torch.tensor([[[torch.inf, -torch.inf]]])
    assert FixedNormalizer(1, 2)(x).tolist() == [[[LIMIT, -LIMIT]]]


def test_running_moments_equal_those_of_all_batches_together():
    x = torch.randn(2, 700, 3, generator=generator()) * torch.tensor([1.0, 30.0, 0.1]) + torch.tensor([5.0, -200, 0])
    norm = RunningNormalizer(2, 3)
    for batch in x.split([1, 99, 400, 200], dim=1):
        norm.update(batch)
    assert norm.count.flatten().tolist() == [700, 700]
    assert_close(norm.mean, x.double().mean(1).float(), rtol=1e-4, atol=1e-4)
    assert_close(norm.std, x.double().std(1, correction=0).float(), rtol=1e-4, atol=1e-5)


def test_a_constant_is_not_blown_up():
    norm = RunningNormalizer(1, 1)
    norm.update(torch.full((1, 50, 1), 7.0))
    assert_close(norm(torch.full((1, 1, 1), 7.5)), torch.full((1, 1, 1), 0.5))


# ----------------------------------------------------------------------------------------------- networks


def test_layers_start_orthogonal_with_their_gains():
    net = MLP(2, (8, 32, 4), "tanh", 0.01, list(member_generators((1, 2), 0)))
    for layer, gain in zip(net.layers, (2**0.5, 0.01), strict=True):
        for weight in layer.weight.detach():
            narrow = weight if weight.shape[0] <= weight.shape[1] else weight.T
            assert_close(narrow @ narrow.T, gain**2 * torch.eye(len(narrow)), rtol=0, atol=1e-5)
        assert not layer.bias.any()


def test_a_members_weights_depend_on_its_own_seed_alone():
    spec = PolicySpec(0, 1, 4, "box", 2, hidden=(8,))
    together, alone = ActorCritic(spec, (5, 6, 7)), ActorCritic(spec, (6,))
    for name, value in alone.state_dict().items():
        assert torch.equal(member_state(together, 1)[name], value), name
    first, second = (together.actor.layers[0].weight[p] for p in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_population_layers_equal_plain_ones(activation):
    net = MLP(3, (4, 6, 2), activation, 1.0, list(member_generators((1, 2, 3), 0)))
    x = torch.randn(3, 10, 4, generator=generator())
    for p in range(3):
        y = x[p]
        for i, layer in enumerate(net.layers):
            y = nn.functional.linear(y, layer.weight[p].T, layer.bias[p, 0])
            y = y if i == 1 else getattr(torch, activation)(y)
        assert_close(net(x)[p], y)


def test_the_state_of_one_member_fits_a_policy_of_one():
    spec = PolicySpec(3, 2, 4, "discrete", 3, hidden=(8,))
    many, one = ActorCritic(spec, (1, 2, 3)), ActorCritic(spec, (99,))
    one.load_state_dict(member_state(many, 2))
    x = torch.randn(3, 5, spec.size, generator=generator())
    assert_close(one.value(x[2:]), many.value(x)[2:])


def test_rows_are_normalised_and_the_account_is_not():
    policy = ActorCritic(PolicySpec(2, 2, 1, "box", 1, hidden=(4,)), (0,))
    policy.row_normalizer.set(torch.tensor([[10.0, 0.0]]), torch.tensor([[2.0, 1.0]]))
    plain = ActorCritic(policy.spec, (0,))  # the same weights, and a normaliser that changes nothing
    x = torch.tensor([[[12.0, 1.0, 14.0, torch.nan, 50.0]]])
    assert_close(policy.value(x), plain.value(torch.tensor([[[1.0, 1.0, 2.0, 0.0, 50.0]]])))
    assert policy.value(x) != plain.value(x)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"hidden": ()}, "hidden"), ({"hidden": (8, 0)}, "hidden"), ({"activation": "gelu"}, "gelu")],
)
def test_a_wrong_spec_is_named(wrong, named):
    with pytest.raises(InputError, match=named):
        PolicySpec(0, 1, 4, "box", 2, **wrong)


# ----------------------------------------------------------------------------- flat parameters and Adam


def test_views_stay_views():
    policy = ActorCritic(PolicySpec(0, 1, 3, "box", 2, hidden=(4,)), (1, 2))
    flat = FlatParameters(policy, 2)
    adam = FlatAdam(flat)
    x = torch.randn(2, 6, 3, generator=generator())

    def check() -> None:
        total = sum(p.numel() for p in policy.parameters())
        assert flat.values.numel() == total
        for p in policy.parameters():
            assert p.data_ptr() >= flat.values.data_ptr() and p.untyped_storage().data_ptr() == flat.values.data_ptr()
        joined = torch.cat([p.detach().reshape(2, -1) for p in policy.parameters()], dim=1)
        assert torch.equal(joined, flat.values)

    check()
    before = flat.values.clone()
    parts = list(policy.parameters())
    grads = torch.autograd.grad(policy.value(x).sum(), parts, allow_unused=True, materialize_grads=True)
    ones = torch.ones(2, 1)
    adam.step(flat.flatten(grads), 1e-2 * ones, ones, ones.bool())
    assert not torch.equal(flat.values, before)
    check()
    policy.load_state_dict(ActorCritic(policy.spec, (7, 8)).state_dict())
    check()


def test_a_parameter_without_population_axis_is_refused():
    with pytest.raises(ValueError, match="no population axis of 3"):
        FlatParameters(ActorCritic(PolicySpec(0, 1, 3, "box", 2, hidden=(4,)), (1, 2)), 3)


def test_flat_adam_equals_torchs_with_clipping():
    """50 steps of three members, each with its own rate and norm limit, against three of torch's."""
    rates, limits = (1e-3, 3e-3, 1e-2), (0.5, 0.05, 1e6)
    spec = PolicySpec(0, 1, 3, "box", 2, hidden=(8,))
    many = ActorCritic(spec, (1, 2, 3))
    flat = FlatParameters(many, 3)
    adam = FlatAdam(flat)
    singles = [ActorCritic(spec, (seed,)) for seed in (1, 2, 3)]
    theirs = [torch.optim.Adam(s.parameters(), lr=lr, eps=1e-5) for s, lr in zip(singles, rates, strict=True)]
    draws = generator()
    for _ in range(50):
        x, action = torch.randn(3, 16, 3, generator=draws), torch.randn(3, 16, 2, generator=draws)

        def loss(policy, x, action):
            log_prob, _, value = policy.evaluate(x, action)
            return (value - x.sum(-1)).square().mean(-1).sum() - log_prob.mean(-1).sum()

        grads = torch.autograd.grad(loss(many, x, action), list(many.parameters()))
        columns = (torch.tensor(v).unsqueeze(1) for v in (rates, limits))
        norm = adam.step(flat.flatten(grads), *columns, torch.ones(3, 1, dtype=torch.bool))
        for p, (single, optimizer) in enumerate(zip(singles, theirs, strict=True)):
            optimizer.zero_grad()
            loss(single, x[p : p + 1], action[p : p + 1]).backward()
            own = nn.utils.clip_grad_norm_(single.parameters(), limits[p])
            assert norm[p].item() == pytest.approx(own.item(), rel=1e-4)
            optimizer.step()
    for p, single in enumerate(singles):
        for name, value in single.state_dict().items():
            assert_close(member_state(many, p)[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_leaves_its_member_untouched(bad):
    policy = ActorCritic(PolicySpec(0, 1, 3, "box", 2, hidden=(4,)), (1, 2, 3))
    flat = FlatParameters(policy, 3)
    adam, ones = FlatAdam(flat), torch.ones(3, 1)
    active = torch.tensor([[True], [True], [False]])
    grads = torch.randn(flat.values.shape, generator=generator())
    adam.step(grads, 1e-2 * ones, ones, torch.ones_like(active))
    before = {name: value.clone() for name, value in (*adam.state_dict().items(), ("values", flat.values))}
    grads[1, 5] = bad
    norm = adam.step(grads, 1e-2 * ones, ones, active)
    after = {**adam.state_dict(), "values": flat.values}
    assert norm[0].isfinite() and not norm[1].isfinite()
    assert adam.count.flatten().tolist() == [2, 1, 1]
    for name in before:
        assert torch.equal(before[name][1:], after[name][1:]), name  # neither the broken one nor the inactive one
        assert not torch.equal(before[name][0], after[name][0]), name
        assert np.isfinite(after[name].numpy()).all()
