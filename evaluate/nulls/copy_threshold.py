"""From where on a similarity or a score is no chance: the tail of a null. Pure: numbers in, numbers out."""
import math
from dataclasses import dataclass

import numpy as np

OUTER, INNER = 0.95, 0.9  # quantiles that a tail is drawn through; what lies beyond the outer one cannot move it
CLOSEST = 1e-6            # distances below are this one: rounding, no information


def tail_quantile(values, quantile):
    """The `quantile` of a null, beyond its 0.95 along an exponential tail.

    x(α) = x₁₀ + (x₅ − x₁₀) · log₂(0.1 / α), through the values x₁₀ and x₅ that 10 % and 5 % of the null exceed: an
    exponential tail halves its weight over the same distance again and again. A few outliers, such as one pair of
    look-alikes, move neither. Up to 0.95 it is the empirical quantile.

    Parameters
    ----------
    values : array (m,)
    quantile : float
        Between 0 and 1.

    Returns
    -------
    float
    """
    inner, outer, asked = np.quantile(np.asarray(values, np.float64), (INNER, OUTER, quantile), method="higher")
    if quantile <= OUTER:
        return float(asked)
    return float(inner + (outer - inner) * math.log2((1 - INNER) / (1 - quantile)))


def nearness(similarity):
    """−log(1 − similarity), of similarities (…) up to 1.

    How close pictures come follows P(distance < x) ~ x^k near 0, with k the local intrinsic dimension (Amsaleg et al.
    2015, "Estimating Local Intrinsic Dimensionality", from Hill 1975). So nearness has an exponential tail.
    """
    return -np.log(np.maximum(1 - np.asarray(similarity, np.float64), CLOSEST))


def copy_threshold(background, quantile=0.999):
    """The `quantile` of similarities, beyond their 0.95 along an exponential tail of their nearness.

    Parameters
    ----------
    background : array (m,)
        Each picture's similarity to its nearest other one, at most 1.
    quantile : float
        Between 0 and 1.

    Returns
    -------
    float
        At most 1.
    """
    return 1 - math.exp(-tail_quantile(nearness(background), quantile))


@dataclass(frozen=True)
class Spread:
    """Where the similarities of a null lie; all but n are None where there are none."""
    n: int
    mean: float | None = None
    std: float | None = None
    p50: float | None = None
    p75: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None


def spread(values):
    """-> Spread: n, mean, standard deviation and the percentiles that the field reports."""
    values = np.asarray(values, np.float64)
    if not len(values):
        return Spread(0)
    percentiles = (float(np.percentile(values, p)) for p in (50, 75, 90, 95, 99))
    return Spread(len(values), float(values.mean()), float(values.std()), *percentiles)
