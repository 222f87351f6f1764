"""Student's t-test of paired samples: two treatments under the same conditions, pair by pair."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """The paired t-test (Student, 1908) of one sample against another.

    difference: the mean of the pairs' differences. interval: around it, with the confidence that was asked for. t,
    degrees: the statistic and its degrees of freedom. p: probability of a |t| this large if the true mean is 0.
    """

    difference: float
    interval: tuple[float, float]
    t: float
    degrees: int
    p: float


def paired(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Comparison:
    """Compare the pairs (a[i], b[i]), of which there are n >= 2.

        d = a - b,  se = sd(d) / sqrt(n),  t = mean(d) / se,  degrees = n - 1
        interval = mean(d) -+ q se,  P(|T| >= q) = 1 - confidence

    What both of a pair share (seed, market, noise) drops out of their difference. Where the differences do not vary,
    t is 0 if they are 0 and infinite otherwise, and the interval is a point.
    """
    own = [x - y for x, y in zip(a, b, strict=True)]
    difference, degrees = statistics.fmean(own), len(own) - 1
    error = statistics.stdev(own) / math.sqrt(len(own))
    if error == 0:
        t = 0.0 if difference == 0 else math.copysign(math.inf, difference)
        return Comparison(difference, (difference, difference), t, degrees, float(difference == 0))
    t, reach = difference / error, critical_t(1 - confidence, degrees) * error
    return Comparison(difference, (difference - reach, difference + reach), t, degrees, two_sided_p(t, degrees))


def two_sided_p(t: float, degrees: float) -> float:
    """P(|T| >= |t|) for Student's T, by Simpson's rule over its density

        f(x) = c (1 + x^2 / v)^(-(v + 1) / 2),  c = Gamma((v + 1) / 2) / (sqrt(v pi) Gamma(v / 2)),

    substituting x = sqrt(v) tan(u), which makes it c sqrt(v) cos(u)^(v - 1) on a bounded range of u.
    """
    end = math.atan(abs(t) / math.sqrt(degrees))
    u = np.linspace(0.0, end, 2_001)
    density = np.cos(u) ** (degrees - 1)
    area = float(density[0] + density[-1] + 4 * density[1:-1:2].sum() + 2 * density[2:-1:2].sum()) * end / 2_000 / 3
    constant = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    return min(1.0, max(0.0, 1 - 2 * constant * area))


def critical_t(p: float, degrees: float) -> float:
    """The t >= 0 whose `two_sided_p` is p, 0 < p < 1, found by bisection."""
    low, high = 0.0, 1.0
    while two_sided_p(high, degrees) > p:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, degrees) > p else (low, middle)
    return (low + high) / 2
