"""A figure with what it rests on: its interval, and how many images and prompts. Pure."""
from typing import NamedTuple

LEVEL = 0.95
# metadata of a dataclass field: in JSON its value and its interval are two keys
INTERVAL = {"interval": True}


class Estimate(NamedTuple):
    """A value and its 95% interval. A named tuple, since torchmetrics takes no frozen
    dataclass from `compute`."""
    value: float
    low: float
    high: float
    n_images: int
    n_prompts: int


def clopper_pearson(k, n, level=LEVEL):
    """Exact two-sided interval for a share of k in n (Clopper and Pearson 1934).

    The ends are quantiles of Beta(k, n − k + 1) and Beta(k + 1, n − k), which need no whole numbers.

    Parameters
    ----------
    k, n : int or float
        Successes and trials, 0 ≤ k ≤ n, n ≥ 1; of an effective number of trials, not whole.
    level : float
        Coverage.

    Returns
    -------
    tuple of float
        Lower and upper end.
    """
    from scipy.stats import beta  # loads slowly, and rules are read before the arguments are right
    tail = (1 - level) / 2
    low = beta.ppf(tail, k, n - k + 1) if k > 0 else 0.0
    high = beta.ppf(1 - tail, k + 1, n - k) if k < n else 1.0
    return float(low), float(high)


def share_estimate(k, n, n_prompts):
    """k of n independent images, of so many prompts -> Estimate of the share; where several images belong to a prompt, see
    clusters.clustered_share."""
    low, high = clopper_pearson(k, n)
    return Estimate(k / n, low, high, n, n_prompts)
