"""Similarities -> threshold, copy rate, interval. Pure: numbers in, numbers out."""
import math

import numpy as np
from scipy.stats import beta

LEVEL = 0.95
CONVENTIONS = (0.5, 0.7, 0.75)  # thresholds on SSCD of photographs: DCR and MemBench; Wen and NeMo; SSCD's authors


def clopper_pearson(k, n, level=LEVEL):
    """Exact two-sided interval for a share of k in n (Clopper and Pearson 1934) -> (low, high)."""
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, k, n - k + 1)) if k > 0 else 0.0
    high = float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    return low, high


def images_needed(bar, level=LEVEL, copies=0):
    """How many images with so many copies it takes for the interval's upper end to fall to `bar`; inf if it never does.

    Without copies that end is 1 - ((1 - level) / 2)^(1 / n).
    """
    if not 0 < bar < 1:
        return math.inf if bar <= 0 else 1
    low, high = 0, max(copies, 1)
    while clopper_pearson(copies, high, level)[1] > bar:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if clopper_pearson(copies, middle, level)[1] <= bar else (middle, high)
    return high


def sim95(top1):
    """95th percentile of the similarity to the nearest training image (Somepalli et al. 2023)."""
    return float(np.quantile(np.asarray(top1, np.float64), 0.95))


def sim95_interval(top1, prompt, rounds=1000, level=LEVEL, seed=0):
    """Percentile bootstrap of sim95 -> (low, high). prompt (n,): prompts are drawn with all their images, since the images of
    one are alike; where there is one prompt only, images are drawn."""
    top1, (_, cluster) = np.asarray(top1, np.float64), np.unique(np.asarray(prompt), return_inverse=True)
    if cluster.max() == 0:
        cluster = np.arange(len(top1))
    members = np.split(np.argsort(cluster, kind="stable"), np.cumsum(np.bincount(cluster))[:-1])
    rng = np.random.default_rng(seed)
    drawn = [np.concatenate([members[c] for c in rng.integers(0, len(members), len(members))]) for _ in range(rounds)]
    tails = [(1 - level) / 2, (1 + level) / 2]
    return tuple(np.quantile([sim95(top1[rows]) for rows in drawn], tails).tolist())


def replication(top1, copied, prompt, own_copied=None, chance=0.01):
    """top1 (n,): similarity to the nearest training image; copied (n,) bool; prompt (n,): whose image; own_copied (n,): of the
    expected training image, NaN where none is; chance: the share of pictures that count as copied though no model copied them
    -> counts and rates."""
    top1, copies = np.asarray(top1, np.float64), int(np.sum(copied))
    interval = clopper_pearson(copies, len(top1))
    own = np.asarray([] if own_copied is None else own_copied, np.float64)
    own = own[~np.isnan(own)]
    return {
        "n": len(top1), "copies": copies, "copy_rate": copies / len(top1), "copy_rate_interval": list(interval),
        "above_chance": interval[0] > chance,
        "own_copies": int(own.sum()), "own_copy_rate": float(own.mean()) if len(own) else None,
        "own_copy_rate_interval": list(clopper_pearson(int(own.sum()), len(own))) if len(own) else None,
        "sim95": sim95(top1), "sim95_interval": list(sim95_interval(top1, prompt)), "top1_mean": float(top1.mean()),
        "share_over": {f"{bar:g}": float((top1 > bar).mean()) for bar in CONVENTIONS},
    }


def mean(values):
    """Of what is known; None if nothing is."""
    values = np.array([np.nan if v is None else v for v in values], np.float64)
    return float(np.nanmean(values)) if (~np.isnan(values)).any() else None
