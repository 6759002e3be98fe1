"""Intervals of a share whose images are drawn prompt by prompt: the images of one prompt are alike. Pure."""
import numpy as np

from rotescope.evaluate.statistics.estimate import LEVEL, clopper_pearson


def clustered_interval(hits, sizes, level=LEVEL):
    """Interval of a share by prompts as clusters (Korn and Graubard 1998, "Confidence intervals for proportions with
    small expected number of positive counts estimated from survey data").

    It is Clopper and Pearson's with the effective number of images

        n* = p (1 − p) / v · (t_{n−1} / t_{c−1})²,   v = c / (c − 1) · Σᵢ (kᵢ − p nᵢ)² / n²,

    p = k / n, c prompts of nᵢ images with kᵢ hits; n* lies between c and n. Where no image hits, or every one, nothing
    tells how alike the images of a prompt are: then n* = c, as if each prompt were one image.

    Parameters
    ----------
    hits, sizes : array of int (c,)
        Of each prompt.
    level : float
        Coverage.

    Returns
    -------
    tuple of float
        Lower and upper end.
    """
    n_effective = effective_images(hits, sizes, level)
    share = float(np.sum(hits) / np.sum(sizes))
    return clopper_pearson(share * n_effective, n_effective, level)


def effective_images(hits, sizes, level=LEVEL):
    """How many independent images say as much: n* of clustered_interval."""
    from scipy.stats import t
    hits, sizes = np.asarray(hits, np.float64), np.asarray(sizes, np.float64)
    c, n = len(sizes), sizes.sum()
    p = hits.sum() / n
    if c == 1 or not 0 < p < 1:
        return float(c)
    v = c / (c - 1) * ((hits - p * sizes) ** 2).sum() / n ** 2
    tail = (1 + level) / 2
    n_effective = p * (1 - p) / v * (t.ppf(tail, n - 1) / t.ppf(tail, c - 1)) ** 2 if v > 0 else n
    return float(np.clip(n_effective, c, n))
