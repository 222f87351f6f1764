"""QuantileNormalizer: market features mapped to normal scores through their own distribution in training.

A feature's value becomes the standard normal quantile of its rank among the training bars: outliers end at +-5.2
instead of stretching everything else. It is the map of scikit-learn's
`QuantileTransformer(output_distribution="normal")`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from environments.errors import InputError

N_QUANTILES = 256
MAX_ROWS = 20_000  # more bars than this are thinned evenly before their quantiles are taken
_BOUND = 1e-7  # ranks nearer to 0 or 1 count as this near


class QuantileNormalizer(nn.Module):
    """Normal scores of D features, for P members; unknown (NaN) -> 0, the median.

    quantiles: (P, D, Q) the training values at ranks 0, 1/(Q-1), ..., 1 of each feature.

        rank(x)  linear interpolation among the quantiles; where several equal x, the middle of their ranks
        out(x) = Phi^-1(rank(x)), ranks kept 1e-7 away from 0 and 1
    """

    def __init__(self, n_members: int, size: int, n_quantiles: int = N_QUANTILES) -> None:
        super().__init__()
        if n_quantiles < 2:
            raise InputError(f"n_quantiles={n_quantiles}: at least 2 are needed")
        # Until it is fitted: the quantiles of a uniform distribution on -3 to 3, so that nothing is constant.
        start = torch.linspace(-3, 3, n_quantiles).expand(n_members, size, n_quantiles)
        self.register_buffer("quantiles", start.clone())

    def fit(self, member_rows: Sequence[Tensor]) -> None:
        """Take the quantiles of each member's training rows, (n_p, D) each, NaN left out."""
        ranks = np.linspace(0, 100, self.quantiles.shape[-1])
        for p, rows in enumerate(member_rows):
            own = rows[:: max(1, -(-rows.shape[0] // MAX_ROWS))].cpu().numpy()
            known = np.isfinite(own)
            for d in range(own.shape[1]):
                values = own[known[:, d], d]
                if values.size:
                    # Interpolation may leave rounding between equal neighbours: monotone again, as it must be.
                    found = np.maximum.accumulate(np.percentile(values.astype(np.float64), ranks))
                    self.quantiles[p, d] = torch.as_tensor(found)

    def forward(self, x: Tensor) -> Tensor:
        """(P, n, k * D) -> the same: the quantiles serve k rows laid side by side."""
        p, n, width = x.shape
        d, q = self.quantiles.shape[1:]
        k = width // d
        values = x.reshape(p, n * k, d).transpose(1, 2).contiguous()
        unknown = values.isnan()
        values = torch.where(unknown, self.quantiles[..., q // 2 : q // 2 + 1], values)
        below = torch.searchsorted(self.quantiles, values)
        above = torch.searchsorted(self.quantiles, values, right=True)
        left, right = (below - 1).clamp(0, q - 1), below.clamp(0, q - 1)
        # In float64 where there is one: a last digit of the share is a sixth digit of the score in the tails.
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        low, high = self.quantiles.gather(-1, left).to(wide), self.quantiles.gather(-1, right).to(wide)
        share = ((values.to(wide) - low) / (high - low).clamp(min=1e-30)).clamp(0, 1)
        between = left + share * (right - left)
        tied = 0.5 * (below + above - 1).to(wide)
        rank = torch.where(above > below, tied, between) / (q - 1)
        rank = torch.where(values < self.quantiles[..., :1], 0.0, rank)
        rank = torch.where(values > self.quantiles[..., -1:], 1.0, rank)
        score = math.sqrt(2) * torch.erfinv(2 * rank.clamp(_BOUND, 1 - _BOUND) - 1)
        score = score.to(x.dtype).masked_fill(unknown, 0.0)
        return score.transpose(1, 2).reshape(p, n, width)
