"""How surprising a similarity is, were nothing copied. Pure: numbers in, numbers out."""
import math

import numpy as np
from scipy.stats import false_discovery_control

FDR = 0.05  # share of false alarms among the prompts that are called significant


def rank_p_values(top, count, null):
    """top (p,): the highest of count (p,) similarities each; null (m,): similarities that no copying caused -> p-values (p,).

    Exact if all of them are exchangeable: with r null values at or above the highest of s, as few or fewer happen with
    1 − C(m, r + 1) / C(m + s, r + 1) = 1 − Π_{j=1…s} (m − r − 1 + j) / (m + j), which is (r + 1) / (m + 1) for s = 1.
    Ties count against significance.
    """
    top, s, m = np.asarray(top, np.float64), np.asarray(count, np.int64), len(null)
    r = m - np.searchsorted(np.sort(np.asarray(null, np.float64)), top, side="left")
    more = np.ones(len(top))
    for j in range(1, s.max(initial=0) + 1):
        more *= np.where(j <= s, (m - r - 1 + j) / (m + j), 1)
    return 1 - more


def benjamini_hochberg(p):
    """p-values (p,) -> adjusted (p,): calling those up to FDR significant keeps the expected share of false ones there
    (Benjamini and Hochberg 1995)."""
    return false_discovery_control(p, method="bh") if len(p) else np.zeros(0)


def null_needed(prompts, images, level=FDR):
    """Null pictures it takes for one prompt among so many, of so many images each, to be significant at all: the smallest
    p-value, images / (m + images), must come down to level / prompts."""
    return math.ceil(images * (prompts / level - 1))


def paired_p_value(similarity, prompt, rounds=999, seed=0):
    """similarity (n, p) of images to the training image of every prompt, prompt (n,) whose they are
    -> (mean over the right pairs, over all wrong ones, p-value by shuffling which training image belongs to which prompt)."""
    n, p = similarity.shape
    lines, rng = np.arange(n), np.random.default_rng(seed)
    own = float(similarity[lines, prompt].mean())
    shuffled = [similarity[lines, rng.permutation(p)[prompt]].mean() for _ in range(rounds)]
    other = (similarity.sum() - similarity[lines, prompt].sum()) / max(n * (p - 1), 1)
    return own, float(other), (1 + sum(s >= own - 1e-9 for s in shuffled)) / (1 + rounds)
