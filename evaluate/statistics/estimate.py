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

    Parameters
    ----------
    k, n : int
        Successes and trials, 0 ≤ k ≤ n, n ≥ 1.
    level : float
        Coverage.

    Returns
    -------
    tuple of float
        Lower and upper end.
    """
    from scipy.stats import binomtest  # loads slowly, and rules are read before the arguments are right
    interval = binomtest(int(k), int(n)).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)


def share_estimate(k, n, n_prompts):
    """k of n images, of so many prompts -> Estimate of the share."""
    low, high = clopper_pearson(k, n)
    return Estimate(k / n, low, high, n, n_prompts)
