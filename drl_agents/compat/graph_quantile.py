"""The quantile normaliser in operations that every runtime has: no sorted search, no inverse error function."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from drl_agents.networks.quantile import _BOUND, QuantileNormalizer

# Wichura, "Algorithm AS 241: The Percentage Points of the Normal Distribution", Applied Statistics, 1988, PPND16:
# rational approximations to 16 digits; numerator and denominator, highest power first.
_CENTRE = (
    (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
     1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    (5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
     5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
)  # fmt: skip
_SHOULDER = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
     3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
     6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0),
)  # fmt: skip
_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
     2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
     1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
)  # fmt: skip


class GraphQuantileNormalizer(nn.Module):
    """`QuantileNormalizer` of one member by comparisons and polynomials: the same to 1e-6."""

    def __init__(self, normalizer: QuantileNormalizer) -> None:
        super().__init__()
        self.register_buffer("quantiles", normalizer.quantiles[0].clone())
        self.normal_quantile = NormalQuantile()

    def forward(self, x: Tensor) -> Tensor:
        """(1, n, k * D) -> the same."""
        d, q = self.quantiles.shape
        values = x.reshape(-1, d)
        unknown = values.isnan()
        values = torch.where(unknown, self.quantiles[:, q // 2], values)
        # How many quantiles lie below and at a value, in place of a search: (rows, D, Q).
        below = (self.quantiles < values.unsqueeze(-1)).sum(-1)
        above = (self.quantiles <= values.unsqueeze(-1)).sum(-1)
        left, right = (below - 1).clamp(0, q - 1), below.clamp(0, q - 1)
        table = self.quantiles.double().unsqueeze(0).expand(values.shape[0], -1, -1)
        low, high = (table.gather(-1, i.unsqueeze(-1)).squeeze(-1) for i in (left, right))
        share = ((values.double() - low) / (high - low).clamp(min=1e-30)).clamp(0, 1)
        between = left + share * (right - left)
        tied = 0.5 * (below + above - 1).double()
        rank = torch.where(above > below, tied, between) / (q - 1)
        rank = torch.where(values < self.quantiles[:, 0], 0.0, rank)
        rank = torch.where(values > self.quantiles[:, -1], 1.0, rank)
        score = self.normal_quantile(rank).to(x.dtype)
        return torch.where(unknown, 0.0, score).reshape(x.shape)


class NormalQuantile(nn.Module):
    """The standard normal's quantile function of p (...) float64, kept 1e-7 away from 0 and 1.

    Every number is a float64 buffer: an exporter may write those in the code as float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("polynomials", torch.tensor([_CENTRE, _SHOULDER, _TAIL], dtype=torch.float64))
        self.register_buffer("bounds", torch.tensor([_BOUND, 1 - _BOUND], dtype=torch.float64))
        self.register_buffer("shifts", torch.tensor([0.180625, 1.6, 0.425], dtype=torch.float64))

    def forward(self, p: Tensor) -> Tensor:
        p = torch.maximum(torch.minimum(p, self.bounds[1]), self.bounds[0])
        q = p - 0.5
        centre = q * self._ratio(0, self.shifts[0] - q * q)
        r = torch.sqrt(-torch.log(torch.minimum(p, 1 - p)))
        tail = torch.where(r <= 5, self._ratio(1, r - self.shifts[1]), self._ratio(2, r - 5))
        return torch.where(q.abs() <= self.shifts[2], centre, torch.where(q < 0, -tail, tail))

    def _ratio(self, which: int, x: Tensor) -> Tensor:
        above, below = self.polynomials[which].unbind(0)
        return _horner(above, x) / _horner(below, x)


def _horner(coefficients: Tensor, x: Tensor) -> Tensor:
    value = coefficients[0].expand_as(x)
    for coefficient in coefficients[1:].unbind(0):
        value = value * x + coefficient
    return value
