"""Was this set of pictures used in training? Many weak signals of each picture, one p-value for the set. Pure.

After CDI (Dubiński et al., CVPR 2025, arXiv 2411.12858): signals of the pictures of a set, and of pictures of the same kind that
cannot have been used, are mapped to one score by a model that is fitted on a half of both; on the other half a one-sided test
asks whether the set's scores are higher. Ours: the model is a shrunk linear discriminant (Friedman 1989), the test is Mann and
Whitney's, and the p-values of many splits are combined by twice their median, which keeps the level whatever the splits have in
common (Meinshausen, Meier and Bühlmann 2009, "p-Values for High-Dimensional Regression", equation 2.2 at γ = .5).
"""
from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu

SPLITS = 40
FEWEST = 8      # pictures of each kind: four to fit on, four to test
SHRUNK = 0.2    # of the pooled covariance, drawn towards its diagonal


@dataclass(frozen=True)
class SetInference:
    """What the signals say of a set."""
    p: float            # that signals of unused pictures would set the two apart as clearly
    auc: float          # of the score, on pictures that it was not fitted on; .5 is nothing, the mean over splits
    n_set: int
    n_heldout: int


def infer_use(of_set, of_heldout, seed: int = 0, splits: int = SPLITS) -> SetInference | None:
    """Signals of the set's pictures (n, d) and of pictures that were not used (m, d), higher or lower, as the fit finds out.

    None where either has fewer than 8 pictures. Pictures whose signals are not finite are left out. A picture that is there twice
    would stand in both halves: leave repeats out before.
    """
    used, unused = (_finite(x) for x in (of_set, of_heldout))
    if min(len(used), len(unused)) < FEWEST:
        return None
    rng, ps, aucs = np.random.default_rng(seed), [], []
    for _ in range(splits):
        (fit_a, test_a), (fit_b, test_b) = (_halves(x, rng) for x in (used, unused))
        direction = discriminant(fit_a, fit_b)
        a, b = test_a @ direction, test_b @ direction
        found = mannwhitneyu(a, b, alternative="greater")
        ps.append(found.pvalue)
        aucs.append(found.statistic / (len(a) * len(b)))
    return SetInference(min(1.0, 2 * float(np.median(ps))), float(np.mean(aucs)), len(used), len(unused))


def discriminant(a, b):
    """Signals (n, d) and (m, d) -> (d,): the direction in which `a` lies above `b`, S⁻¹ (ā − b̄), S the pooled covariance, shrunk
    towards its diagonal."""
    centred = np.concatenate([a - a.mean(0), b - b.mean(0)])
    scale = centred.std(0) + 1e-12
    correlation = (centred / scale).T @ (centred / scale) / len(centred)
    shrunk = (1 - SHRUNK) * correlation + SHRUNK * np.eye(len(correlation))
    return np.linalg.solve(shrunk, (a.mean(0) - b.mean(0)) / scale) / scale


def _finite(x):
    x = np.asarray(x, np.float64)
    return x[np.isfinite(x).all(-1)]


def _halves(x, rng):
    order = rng.permutation(len(x))
    return x[order[:len(x) // 2]], x[order[len(x) // 2:]]
