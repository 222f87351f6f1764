"""The quantile normaliser against scikit-learn's, and by hand."""

import numpy as np
import pytest
import torch

from drl_agents.networks.policy import ActorCritic, PolicySpec
from drl_agents.networks.quantile import QuantileNormalizer


def fitted(*members: np.ndarray, n_quantiles: int = 64) -> QuantileNormalizer:
    normalizer = QuantileNormalizer(len(members), members[0].shape[1], n_quantiles)
    normalizer.fit([torch.as_tensor(m, dtype=torch.float32) for m in members])
    return normalizer


def skewed(seed: int, rows: int = 3_000) -> np.ndarray:
    rng = np.random.default_rng(seed)
    plateau = np.where(rng.random(rows) < 0.4, 0.25, rng.random(rows))
    return np.stack([rng.lognormal(size=rows), rng.standard_t(2, size=rows), plateau], axis=1).astype(np.float32)


def test_equals_scikit_learn():
    preprocessing = pytest.importorskip("sklearn.preprocessing", reason="scikit-learn is not installed")
    train, fresh = skewed(0), np.concatenate([skewed(1), [[1e6, -1e6, 0.25], [-1, 1e6, 2.0]]]).astype(np.float32)
    theirs = preprocessing.QuantileTransformer(n_quantiles=64, output_distribution="normal", subsample=None)
    theirs.fit(train.astype(np.float64))
    # Their quantiles as we keep them, in float32: what is compared is the map.
    ours = fitted(train)
    np.testing.assert_allclose(ours.quantiles[0].numpy().T, theirs.quantiles_, rtol=1e-6)
    theirs.quantiles_ = ours.quantiles[0].double().numpy().T
    expected = theirs.transform(fresh.astype(np.float64))
    found = ours(torch.from_numpy(fresh).unsqueeze(0))[0].numpy()
    assert np.abs(found - expected).max() < 1e-6


def test_by_hand():
    normalizer = fitted(np.array([[0.0], [1.0], [2.0], [3.0], [4.0]], dtype=np.float32), n_quantiles=5)
    x = torch.tensor([[[2.0], [1.0], [0.5], [torch.nan], [-9.0], [9.0]]])
    ranks = torch.tensor([0.5, 0.25, 0.125, 0.5, 1e-7, 1 - 1e-7], dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, 1.0).icdf(ranks)
    torch.testing.assert_close(normalizer(x)[0, :, 0].double(), expected, atol=2e-6, rtol=1e-6)


def test_tied_values_take_the_middle_of_their_ranks():
    normalizer = fitted(np.array([[0.0], [1.0], [1.0], [1.0], [2.0]], dtype=np.float32), n_quantiles=5)
    assert normalizer(torch.tensor([[[1.0]]])).item() == pytest.approx(0.0, abs=1e-6)


def test_lookback_rows_side_by_side_and_members_apart():
    a, b = skewed(2), 5 * skewed(3)
    both = fitted(a, b)
    x = torch.randn(2, 7, 3 * 4)
    out = both(x)
    assert out.shape == x.shape
    for p, own in enumerate((a, b)):
        alone = fitted(own)
        assert torch.equal(out[p], alone(x[p : p + 1])[0])
        rows = torch.cat([alone(x[p : p + 1, :, i * 3 : i * 3 + 3]) for i in range(4)], dim=-1)
        assert torch.equal(out[p], rows[0])


def test_a_policy_carries_it():
    spec = PolicySpec(3, 2, 4, "box", 1, hidden=(8,), normalizer="quantile")
    policy, other = ActorCritic(spec, (0,)), ActorCritic(spec, (1,))
    policy.row_normalizer.fit([torch.from_numpy(skewed(4))])
    other.load_state_dict(policy.state_dict())
    x = torch.randn(1, 5, spec.size)
    x[0, 0, 0] = torch.nan
    assert torch.equal(policy.mode(x), other.mode(x)) and bool(policy.mode(x).isfinite().all())
