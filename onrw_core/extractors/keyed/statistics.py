"""p-value of the presence of a key's watermark.

It is valid for any image, because the random variable is the key. Under a wrong key the patterns are random directions
of the band's d = 364 dimensions, independent of the tile t that they are compared with. So

    cosine of one sync pattern and t:  cos^2 ~ Beta(1/2, (d - 1)/2)
    part of the payload's K carriers in t (less its sync parts): ~ Beta(K/2, (d - 5 - K)/2), independent of the first.

The sync cosine is the largest over all shifts of a square window of side T, a smooth random field with second spectral
moments L. The expected Euler characteristic of the excursion set above a level c bounds the probability of a
peak, and is nearly equal to it where that is small (Adler & Taylor 2007, Random Fields and Geometry):

    T^2 sqrt(det L) r_2(c) + T (sqrt L_xx + sqrt L_yy) r_1(c) + r_0(c)

with the densities of the unit sphere in d dimensions, s being a random point of it,

    r_2 = G (2 pi)^-1 pi^-1/2 c (1 - c^2)^((d - 3)/2),   G = gamma(d/2) / gamma((d - 1)/2),
    r_1 = (2 pi)^-1 (1 - c^2)^((d - 2)/2),   r_0 = P(Beta(1/2, (d - 1)/2) > c^2) / 2.

It accounts for correlated shifts by any fraction of a pixel; r_1 and r_0 matter for tiles of stripes, which are
constant along a line. Orientations and bit counts multiply it. The payload may be tested after any
refinement that used the sync pattern alone. Both p-values are combined by their product q: P = q (1 - ln q)
(Fisher). Geometries tried share the false-positive rate by weights fixed beforehand (`reader`).
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["energy_log_p", "log_beta_tail", "product_log_p", "sync_log_p"]

FRACTION_TERMS = 300  # terms of the continued fraction; it converges in about sqrt(max(a, b)) terms
TINY = 1e-300


def log_beta_tail(x: np.ndarray | float, a: float, b: float) -> np.ndarray:
    """Natural logarithm of P(Beta(a, b) > x), exact far into the tail (continued fraction, modified Lentz)."""
    x = np.clip(np.atleast_1d(np.asarray(x, dtype=np.float64)), 0.0, 1.0)
    # P(X > x) = I_{1-x}(b, a); the fraction converges fast on one side of the mean.
    y = 1 - x
    tail = y < (b + 1) / (a + b + 2)
    argument = np.where(tail, y, x)
    p, q = np.where(tail, b, a), np.where(tail, a, b)
    with np.errstate(divide="ignore"):
        front = p * np.log(argument) + q * np.log1p(-argument) - np.log(p)
    front = front + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    value = front + np.log(_beta_fraction(argument, p, q))
    return np.where(tail, value, np.log1p(-np.minimum(np.exp(np.minimum(value, 0)), 1 - 1e-16)))


def _beta_fraction(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The continued fraction of the incomplete beta function (Numerical Recipes 6.4)."""
    c = np.ones_like(x)
    d = 1 / _away(1 - (a + b) * x / (a + 1))
    h = d
    for m in range(1, FRACTION_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d, c = 1 / _away(1 + even * d), _away(1 + even / c)
        h = h * d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1 / _away(1 + odd * d), _away(1 + odd / c)
        h = h * d * c
        if np.all(np.abs(d * c - 1) < 1e-12):
            break
    return h


def _away(value: np.ndarray) -> np.ndarray:
    return np.where(np.abs(value) < TINY, TINY, value)


def sync_log_p(cosine: np.ndarray, roughness: np.ndarray, dimensions: int, area: float, tries: float) -> np.ndarray:
    """Natural logarithm of the probability that the best sync cosine over all shifts and tries is this large.

    Args:
        cosine: Largest cosine, (...).
        roughness: (..., 2), sqrt L_xx + sqrt L_yy in 1/pixel and sqrt(det L) in 1/pixel^2 of the tile's correlation
            (`alignment.roughness`).
        dimensions: d.
        area: Number of shifts in square pixels (64 * 64).
        tries: Orientations x bit counts x geometries.
    """
    cosine = np.clip(np.asarray(cosine, dtype=np.float64), 1e-6, 1 - 1e-12)
    log_rest = np.log1p(-(cosine**2))
    ratio = math.lgamma(dimensions / 2) - math.lgamma((dimensions - 1) / 2)
    with np.errstate(divide="ignore"):  # a tile of stripes has determinant 0
        inside = np.log(area * roughness[..., 1] * cosine) + ratio - math.log(2 * math.pi**1.5)
        edges = np.log(math.sqrt(area) * roughness[..., 0]) - math.log(2 * math.pi)
    corner = log_beta_tail(cosine**2, 0.5, (dimensions - 1) / 2) - math.log(2)
    expected = np.logaddexp(inside + (dimensions - 3) / 2 * log_rest, edges + (dimensions - 2) / 2 * log_rest)
    expected = np.logaddexp(expected, corner) + math.log(tries)
    # The number of peaks is Poisson distributed; the probability of at least one, which is their expected number where
    # that is small.
    return np.where(expected > -30, np.log(-np.expm1(-np.exp(np.clip(expected, -30, 3)))), expected)


def energy_log_p(fraction: np.ndarray | float, carriers: int, dimensions: int) -> np.ndarray:
    """Natural logarithm of the probability that `carriers` random directions span this fraction of a tile's energy."""
    return log_beta_tail(fraction, carriers / 2, (dimensions - carriers) / 2)


def product_log_p(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Fisher's combination of two independent log p-values: q (1 - ln q) with q their product."""
    log_q = np.minimum(first, 0) + np.minimum(second, 0)
    return log_q + np.log1p(-log_q)
