"""Similarities -> threshold, copy rate, interval. Pure: numbers in, numbers out."""
import math

import numpy as np
from scipy.stats import beta

LEVEL = 0.95


def copy_threshold(background, quantile=0.99):
    """The `quantile` of the background similarities, and always one of them: at most 1 - quantile of them lie above it.

    background: each training image's similarity to its nearest other one. Fewer than 1 / (1 - quantile) of them: the highest.
    """
    return float(np.quantile(np.asarray(background, np.float64), quantile, method="higher"))


def clopper_pearson(k, n, level=LEVEL):
    """Exact two-sided interval for a share of k in n (Clopper and Pearson 1934) -> (low, high)."""
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, k, n - k + 1)) if k > 0 else 0.0
    high = float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    return low, high


def images_needed(bar, level=LEVEL):
    """How many images without one copy it takes for the interval's upper end, 1 - ((1 - level) / 2)^(1 / n), to fall to `bar`."""
    return math.ceil(math.log((1 - level) / 2) / math.log1p(-bar)) if 0 < bar < 1 else math.inf if bar <= 0 else 1


def sim95(top1):
    """95th percentile of the similarity to the nearest training image (Somepalli et al. 2023)."""
    return float(np.quantile(np.asarray(top1, np.float64), 0.95))


def spread(values):
    """-> n, mean and the percentiles that the field reports."""
    values = np.asarray(values, np.float64)
    if not len(values):
        return {"n": 0}
    return {"n": len(values), "mean": float(values.mean())} | {
        f"p{p}": float(np.percentile(values, p)) for p in (50, 75, 90, 95, 99)}


def replication(top1, threshold, own=None, chance=0.01):
    """top1 (n,): similarity to the nearest training image; own: to the expected one, NaN where none is; chance: the share of
    pictures that reach the threshold though no model copied them -> counts and rates."""
    top1 = np.asarray(top1, np.float64)
    copies = int((top1 >= threshold).sum())
    interval = clopper_pearson(copies, len(top1))
    expected = np.asarray([] if own is None else own, np.float64)
    expected = expected[~np.isnan(expected)]
    return {
        "n": len(top1), "copies": copies, "copy_rate": copies / len(top1), "copy_rate_interval": list(interval),
        "above_chance": interval[0] > chance, "own_copy_rate": float((expected >= threshold).mean()) if len(expected) else None,
        "sim95": sim95(top1), "top1_mean": float(top1.mean()),
    }
