"""From where on a similarity is a copy: a quantile of a null. Pure: numbers in, numbers out."""
from dataclasses import dataclass

import numpy as np


def copy_threshold(background, quantile=0.99):
    """The `quantile` of the background similarities, and always one of them: at most 1 - quantile of them lie above it.

    background: each training image's similarity to its nearest other one. Fewer than 1 / (1 - quantile) of them: the highest.
    """
    return float(np.quantile(np.asarray(background, np.float64), quantile, method="higher"))


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
