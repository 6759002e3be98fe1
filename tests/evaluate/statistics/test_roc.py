"""Scores and labels -> figures: against torchmetrics and scipy, by hand, and by simulation."""
import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, norm
from torchmetrics.functional.classification import binary_auroc, binary_roc

from rotescope.evaluate.statistics.roc import auc_interval, detection, detection_table, roc_auc, roc_curve, threshold_at


def drawn(seed, m=30, n=50, ties=False):
    rng = np.random.default_rng(seed)
    positives, negatives = rng.normal(1, 1, m), rng.normal(0, 1, n)
    return (positives.round(), negatives.round()) if ties else (positives, negatives)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_and_curve_are_those_of_others(ties):
    positives, negatives = drawn(0, ties=ties)
    scores, labels = torch.tensor(np.r_[positives, negatives]), torch.tensor([1] * 30 + [0] * 50)
    squashed = torch.sigmoid(scores)  # torchmetrics takes probabilities; the order is the same
    assert roc_auc(positives, negatives) == pytest.approx(binary_auroc(squashed, labels).item())
    assert roc_auc(positives, negatives) == pytest.approx(mannwhitneyu(positives, negatives).statistic / (30 * 50))
    for ours, theirs in zip(roc_curve(positives, negatives), binary_roc(squashed, labels)[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert np.trapezoid(*reversed(roc_curve(positives, negatives))) == pytest.approx(roc_auc(positives, negatives))


def test_a_perfect_a_reversed_and_a_blind_detector():
    assert [roc_auc([2, 3], [0, 1]), roc_auc([0, 1], [2, 3]), roc_auc([1, 1], [1, 1])] == [1.0, 0.0, 0.5]


def hanley_mcneil(theta, m, n):
    q1, q2 = theta / (2 - theta), 2 * theta ** 2 / (1 + theta)
    return (theta * (1 - theta) + (m - 1) * (q1 - theta ** 2) + (n - 1) * (q2 - theta ** 2)) / (m * n)


@pytest.mark.parametrize("auc", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_the_interval_solves_its_equation(auc):
    low, high = auc_interval(auc, 24, 24)
    assert 0 <= low <= auc <= high <= 1
    for end in {low, high} - {0.0, 1.0}:
        assert abs(auc - end) == pytest.approx(norm.ppf(0.975) * hanley_mcneil(end, 24, 24) ** 0.5, rel=1e-6)
    mirrored = auc_interval(1 - auc, 24, 24)
    np.testing.assert_allclose([1 - mirrored[1], 1 - mirrored[0]], [low, high], atol=1e-9)


def test_the_interval_covers_as_often_as_it_says():
    truth, hits = norm.cdf(1.8 / 2 ** 0.5), 0  # two normals, 1.8 apart
    for seed in range(400):
        rng = np.random.default_rng(seed)
        low, high = auc_interval(roc_auc(rng.normal(1.8, 1, 24), rng.normal(0, 1, 24)), 24, 24)
        hits += low <= truth <= high
    assert 0.92 <= hits / 400 <= 0.99


def test_the_threshold_lets_at_most_its_share_through():
    negatives = np.arange(200.0)
    assert threshold_at(negatives, 0.01) == 197  # two of 200 exceed it
    assert threshold_at(negatives[:99], 0.01) == 98  # too few: none may
    assert threshold_at([5.0] * 300, 0.01) == 5  # ties exceed nothing


def test_a_detection_by_hand():
    found = detection([3, 3, 5, 0], [1, 2, 3])
    assert (found["auc"], found["threshold"]) == (8 / 12, 3)
    assert (found["tpr"], found["fpr"]) == (0.25, 0)
    assert (found["n_memorized"], found["n_other"]) == (4, 3)
    assert found["fpr_interval"][1] == pytest.approx(1 - 0.025 ** (1 / 3))  # of no alarm in three


def test_the_table_has_a_cell_for_each_other_group():
    rows = [{"detector": "d", "group": g, "score": s}
            for g, s in (("duplicated", 3), ("control", 1), ("heldout", 4), ("duplicated", 2), ("control", 0))]
    table = detection_table(rows)
    assert {group: cell["auc"] for group, cell in table["d"].items()} == {"control": 1.0, "heldout": 0.0}
    assert detection_table([r for r in rows if r["group"] != "duplicated"]) == {}
