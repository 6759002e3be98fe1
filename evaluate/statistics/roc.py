"""Scores and labels -> how well a detector tells memorized prompts from others. Pure: numbers in, numbers out.

A score is higher for what is more memorized. Every figure comes with the two group sizes and a 95 % interval; AUCs of two papers,
or of two control groups, do not compare.
"""
import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, rankdata

from rotescope.evaluate.statistics.estimate import LEVEL, clopper_pearson

MEMORIZED = "duplicated"


def roc_curve(positives, negatives):
    """Scores (m,), (n,) -> (false positive rates, true positive rates), one point a distinct threshold, from (0, 0) to (1, 1)."""
    positives, negatives = np.sort(positives), np.sort(negatives)
    thresholds = np.unique(np.concatenate([positives, negatives]))[::-1]
    rates = [1 - np.searchsorted(scores, thresholds) / len(scores) for scores in (negatives, positives)]
    return tuple(np.concatenate([[0.0], r]) for r in rates)


def roc_auc(positives, negatives):
    """P(positive > negative) + ½ P(tie): the Mann–Whitney statistic over mn."""
    m, n = len(positives), len(negatives)
    ranks = rankdata(np.concatenate([positives, negatives]))
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))


def auc_interval(auc, m, n, level=LEVEL):
    """Newcombe's method 5 (Statistics in Medicine 2006, part 2) -> (low, high); sound at an AUC of 1, where others have no width.

    The ends θ solve |auc − θ| = z √V(θ), V(θ) = θ(1 − θ)(1 + k(1 − θ)/(2 − θ) + kθ/(1 + θ)) / (mn), k = (m + n)/2 − 1.
    """
    z, k = norm.ppf((1 + level) / 2), (m + n) / 2 - 1

    def excess(theta):
        variance = theta * (1 - theta) * (1 + k * (1 - theta) / (2 - theta) + k * theta / (1 + theta)) / (m * n)
        return abs(auc - theta) - z * np.sqrt(variance)

    edge = 1e-12  # V is 0 at 0 and at 1
    low = brentq(excess, edge, min(auc, 1 - edge)) if auc > edge else 0.0
    high = brentq(excess, max(auc, edge), 1 - edge) if auc < 1 - edge else 1.0
    return float(low), float(high)


def threshold_at(negatives, fpr=0.01):
    """The lowest of the negatives' scores that at most a share `fpr` of them exceed."""
    return float(np.sort(negatives)[::-1][int(fpr * len(negatives) + 1e-9)])


def detection(positives, negatives, fpr=0.01):
    """Scores of memorized (m,) and of other prompts (n,) -> AUC, TPR at `fpr`, intervals, sizes.

    The TPR's interval (Clopper–Pearson) takes the threshold as given; below 1 / fpr negatives the threshold is their highest
    score, and fpr_interval says how high the true rate may still be.
    """
    positives, negatives = (np.asarray(scores, np.float64) for scores in (positives, negatives))
    auc, threshold = roc_auc(positives, negatives), threshold_at(negatives, fpr)
    hits, alarms = int((positives > threshold).sum()), int((negatives > threshold).sum())
    m, n = len(positives), len(negatives)
    return {"n_memorized": m, "n_other": n, "auc": auc, "auc_interval": list(auc_interval(auc, m, n)),
            "tpr": hits / m, "tpr_interval": list(clopper_pearson(hits, m)), "at_fpr": fpr, "threshold": threshold,
            "fpr": alarms / n, "fpr_interval": list(clopper_pearson(alarms, n))}


def detection_table(rows, memorized=MEMORIZED):
    """Rows {detector, group, score} -> {detector: {other group: detection}}; empty where no row is of the group `memorized`.

    A row without a score (None) counts nowhere.
    """
    scores = {}
    for row in (r for r in rows if r["score"] is not None):
        scores.setdefault(row["detector"], {}).setdefault(row["group"], []).append(row["score"])
    return {name: {group: detection(groups[memorized], others) for group, others in groups.items() if group != memorized}
            for name, groups in scores.items() if memorized in groups and len(groups) > 1}
