"""The quantile normaliser as scikit-learn's `QuantileTransformer(output_distribution="normal")`, and back.

https://scikit-learn.org/stable/modules/generated/sklearn.preprocessing.QuantileTransformer.html. A transformer fitted
there differs in two things: what is unknown (NaN) stays so, and becomes 0, the median, here; the lowest and the highest
value become -5.2 and 5.2 also where many bars share them (volume 0), and the middle of their ranks here. What is
exported does the second as it is done here.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from drl_agents.networks.quantile import QuantileNormalizer
from environments.errors import InputError
from environments.files import write_atomic

if TYPE_CHECKING:
    from sklearn.preprocessing import QuantileTransformer


def to_sklearn(normalizer: QuantileNormalizer, member: int = 0) -> QuantileTransformer:
    """A fitted transformer of D features that does what member `member`'s normaliser does, to 1e-6."""
    try:
        from sklearn.preprocessing import QuantileTransformer
    except ImportError as error:
        raise InputError("scikit-learn is not installed: pip install scikit-learn") from error
    quantiles = normalizer.quantiles[member].detach().cpu().double().numpy().T  # (Q, D)
    transformer = QuantileTransformer(n_quantiles=len(quantiles), output_distribution="normal")
    # What `fit` sets: it would take the quantiles of data, and these are quantiles already.
    # One more at either end, with the same rank: the lowest value that occurs is not the lowest of the table then, and
    # is ranked by its ties.
    margin = np.abs(quantiles[[0, -1]]) + 1
    transformer.quantiles_ = np.concatenate([quantiles[:1] - margin[:1], quantiles, quantiles[-1:] + margin[1:]])
    transformer.references_ = np.concatenate([[0.0], np.linspace(0, 1, len(quantiles)), [1.0]])
    transformer.n_quantiles_ = len(transformer.references_)
    transformer.n_features_in_ = quantiles.shape[1]
    return transformer


def from_sklearn(transformer: QuantileTransformer) -> QuantileNormalizer:
    """The normaliser, of one member, that does what a fitted transformer does.

    Raises:
        InputError: it is not fitted, or its output is not normal.
    """
    if transformer.output_distribution != "normal":
        raise InputError(f"output_distribution {transformer.output_distribution!r}: accepted is 'normal'")
    if not hasattr(transformer, "quantiles_"):
        raise InputError("the QuantileTransformer is not fitted")
    ranks, own = transformer.references_, transformer.quantiles_
    inner = own[1:-1] if ranks[0] == ranks[1] else own  # without the ends that `to_sklearn` adds
    quantiles = torch.as_tensor(inner.T.copy(), dtype=torch.float32)
    normalizer = QuantileNormalizer(1, *quantiles.shape)
    normalizer.quantiles.copy_(quantiles.unsqueeze(0))
    return normalizer


def export_sklearn(path: str | Path, normalizer: QuantileNormalizer, member: int = 0) -> Path:
    """Write `to_sklearn` as a `.joblib` file, for `joblib.load`. Ours is never read back: such files run code."""
    transformer = to_sklearn(normalizer, member)
    import joblib  # scikit-learn's own

    path = Path(path) if Path(path).suffix else Path(path).with_suffix(".joblib")
    file = io.BytesIO()
    joblib.dump(transformer, file)
    write_atomic(path, file.getvalue())
    return path
