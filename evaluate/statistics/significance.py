"""How surprising a similarity is, were nothing copied. Pure: numbers in, numbers out."""
import math

import numpy as np
from scipy.stats import binom, false_discovery_control

FDR = 0.01         # share of false alarms among the prompts that are called significant
DOUBT = 0.1        # and up to which a prompt is not called clean either
TAIL_SHARE = 0.1   # of the null, that its tail is drawn through
FEW_FOR_TAIL = 40  # null values below which no tail is drawn


def tail_p_values(values, null):
    """p-values (n,) of single values (n,) against null (m,) values that no copying caused; beyond the null's highest tenth
    along an exponential tail, since ranks alone never say less than 1 / (m + 1).

    Of the k = m / 10 highest null values the excesses over the one below, x, are independent and exponential where the tail
    is (Rényi 1953, "On the theory of order statistics"), whatever its scale. So a further value exceeds x by e or more with

        p = (k + 1) / (m + 1) · (1 + e / Σ excesses)^−k,

    exactly, with the scale unknown: few null values make p larger, never smaller. Up to x it is (r + 1) / (m + 1) with r null
    values at or above.
    """
    values, null = np.asarray(values, np.float64), np.sort(np.asarray(null, np.float64))
    m, k = len(null), int(TAIL_SHARE * len(null))
    p = (m - np.searchsorted(null, values, side="left") + 1) / (m + 1)
    if m < FEW_FOR_TAIL:
        return p
    excesses = (null[m - k:] - null[m - k - 1]).sum()
    beyond = np.maximum(values - null[m - k - 1], 0)
    return np.where(beyond > 0, (k + 1) / (m + 1) * (1 + beyond / excesses) ** -k, p) if excesses > 0 else p


def any_of(p, n):
    """That one of n or more independent ones is as surprising as p."""
    return -np.expm1(n * np.log1p(-np.minimum(p, 1 - 1e-16)))


def as_many_of(k, n, chance):
    """That k or more of n happen, each with this chance."""
    return float(binom.sf(k - 1, n, chance)) if k else 1.0


def surest_of(p_values):
    """Several p-values of one hypothesis -> one, valid however they depend on each other: the smallest times their number
    (Bonferroni; Dunn 1961, "Multiple comparisons among means"). None among them are tests that do not apply."""
    told = [p for p in p_values if p is not None]
    return min(1.0, len(told) * min(told))


def holm(p):
    """p-values (n,) -> adjusted (n,): that any of those up to a level is a false alarm is no likelier than that level, however
    they depend on each other (Holm 1979, "A simple sequentially rejective multiple test procedure")."""
    p = np.asarray(p, np.float64)
    order, adjusted = np.argsort(p, kind="stable"), np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))), 1)
    return adjusted


def benjamini_hochberg(p):
    """p-values (p,) -> adjusted (p,): calling those up to FDR significant keeps the expected share of false ones there
    (Benjamini and Hochberg 1995)."""
    return false_discovery_control(p, method="bh") if len(p) else np.zeros(0)


def null_needed(prompts, images, level=FDR):
    """Null pictures it takes for one prompt among so many, of so many images each, to be significant at all: by ranks the
    smallest p-value, images / (m + images), must come down to level / prompts; with enough for a tail there is no such floor."""
    return min(math.ceil(images * (prompts / level - 1)), FEW_FOR_TAIL)


def paired_p_value(similarity, prompt, rounds=999, seed=0):
    """similarity (n, p) of images to the training image of every prompt, prompt (n,) whose they are
    -> (mean over the right pairs, over all wrong ones, p-value by shuffling which training image belongs to which prompt)."""
    n, p = similarity.shape
    lines, rng = np.arange(n), np.random.default_rng(seed)
    own = float(similarity[lines, prompt].mean())
    shuffled = [similarity[lines, rng.permutation(p)[prompt]].mean() for _ in range(rounds)]
    other = (similarity.sum() - similarity[lines, prompt].sum()) / max(n * (p - 1), 1)
    return own, float(other), (1 + sum(s >= own - 1e-9 for s in shuffled)) / (1 + rounds)
