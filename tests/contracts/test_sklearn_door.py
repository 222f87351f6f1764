"""The quantile normaliser beside scikit-learn's, fitted, exported and taken in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drl_agents.compat.sklearn import export_sklearn, from_sklearn, to_sklearn
from drl_agents.networks.quantile import QuantileNormalizer
from environments.errors import InputError

pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra: test)")

import joblib
from sklearn.preprocessing import QuantileTransformer


def data(seed: int, n: int = 3000) -> np.ndarray:
    """Features as markets have them: heavy tails, ties, a constant, unknown values."""
    random = np.random.default_rng(seed)
    columns = [random.standard_t(2, n), random.integers(0, 5, n), np.full(n, 3.0), random.lognormal(0, 2, n)]
    rows = np.stack(columns, axis=1).astype(np.float32)
    rows[random.random(rows.shape) < 0.02] = np.nan
    return rows


def ours(normalizer: QuantileNormalizer, x: np.ndarray, member: int = 0) -> np.ndarray:
    members = normalizer.quantiles.shape[0]
    return normalizer(torch.as_tensor(x).expand(members, -1, -1))[member].numpy()


def theirs(transformer: QuantileTransformer, x: np.ndarray) -> np.ndarray:
    # In float64: given float32 it rounds the ranks, a sixth digit of the score in the tails.
    return np.nan_to_num(transformer.transform(x.astype(np.float64)), nan=0.0)


def test_exported_it_does_the_same(tmp_path):
    normalizer = QuantileNormalizer(2, 4)
    normalizer.fit([torch.as_tensor(data(0)), torch.as_tensor(data(1))])
    x = np.concatenate([data(2), data(0)[:50], np.array([[1e9, -1e9, 3.0, 0.0]], dtype=np.float32)])
    for member in (0, 1):
        loaded = joblib.load(export_sklearn(tmp_path / f"normalizer{member}", normalizer, member))
        np.testing.assert_allclose(theirs(loaded, x), ours(normalizer, x, member), rtol=0, atol=1e-6)


def test_it_fits_like_it():
    normalizer, rows = QuantileNormalizer(1, 4), data(3)
    normalizer.fit([torch.as_tensor(rows)])
    fitted = QuantileTransformer(n_quantiles=256, output_distribution="normal", subsample=None).fit(rows)
    own = normalizer.quantiles[0].numpy().T
    np.testing.assert_allclose(own, fitted.quantiles_, rtol=1e-6, atol=1e-6)
    fitted.quantiles_ = own.astype(np.float64)  # as they are kept here, in float32: what is compared is the map
    x = data(4)
    tied_ends = (x == own[0]) | (x == own[-1])
    difference = np.abs(theirs(fitted, x) - ours(normalizer, x))[~tied_ends]
    assert difference.max() < 1e-6 and difference.size > 7_000


def test_taken_in_it_does_the_same():
    rows = data(5)[:, [0, 3]]
    fitted = QuantileTransformer(n_quantiles=100, output_distribution="normal").fit(rows)
    fitted.quantiles_ = fitted.quantiles_.astype(np.float32).astype(np.float64)
    x = data(6)[:, [0, 3]]
    np.testing.assert_allclose(ours(from_sklearn(fitted), x), theirs(fitted, x), rtol=0, atol=1e-6)
    normalizer = QuantileNormalizer(1, 4)
    normalizer.fit([torch.as_tensor(data(7))])
    assert (from_sklearn(to_sklearn(normalizer)).quantiles == normalizer.quantiles).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="accepted is 'normal'"):
        from_sklearn(QuantileTransformer(output_distribution="uniform"))
    with pytest.raises(InputError, match="not fitted"):
        from_sklearn(QuantileTransformer(output_distribution="normal"))
