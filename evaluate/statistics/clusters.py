"""Intervals of a share whose images are drawn prompt by prompt: the images of one prompt are alike. Pure."""
import math

import numpy as np

from rotescope.evaluate.statistics.estimate import LEVEL, Estimate, clopper_pearson
from rotescope.evaluate.statistics.replication import images_needed

INTERVALS = "95 % intervals take prompts as clusters (Clopper-Pearson, effective number of images: Korn and Graubard 1998)"


def clustered_share(hits, prompt):
    """hits (n,) of images, prompt (n,) whose each is -> Estimate of the share, with clustered_interval."""
    _, cluster = np.unique(np.asarray(prompt), return_inverse=True)
    by_prompt, sizes = np.bincount(cluster, np.asarray(hits, np.float64)), np.bincount(cluster)
    low, high = clustered_interval(by_prompt, sizes)
    return Estimate(float(by_prompt.sum() / sizes.sum()), low, high, len(cluster), len(sizes))


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


def prompts_needed(bar, found=None, level=LEVEL):
    """How many prompts it takes for the upper end of a share's interval to fall to `bar`, were none of the further images
    copies; inf if it never does.

    Each further prompt brings as many images as those that are there, and an image says as much: n* / n of an independent
    one. Without copies n* = c: only prompts count, however many images each has.

    Parameters
    ----------
    bar : float
        Between 0 and 1.
    found : Estimate, optional
        What was found so far. Nothing: no copies.
    level : float
        Coverage.

    Returns
    -------
    int, or inf
    """
    if found is None or not found.value:
        return images_needed(bar, level)
    worth = _effective_of(found, level) / found.n_images
    needed = images_needed(bar, level, found.value * found.n_images * worth) / worth / found.n_images * found.n_prompts
    return math.ceil(needed - 1e-6) if math.isfinite(needed) else needed


def _effective_of(found, level):
    """An Estimate -> the n* that its upper end belongs to."""
    from scipy.optimize import brentq

    def excess(n):
        return clopper_pearson(found.value * n, n, level)[1] - found.high
    least, most = float(found.n_prompts), float(found.n_images)
    if found.value >= 1 or excess(most) >= 0 or excess(least) <= 0:
        return least if found.value >= 1 or excess(least) <= 0 else most
    return brentq(excess, least, most)
