"""The paper's claims, on curves made by hand; and the whole command on a tiny model."""
from types import SimpleNamespace

import numpy as np
import pytest

from rotescope.evaluate.statistics import paper_claims as claims
from rotescope.evaluate.statistics.estimate import Estimate
from rotescope.evaluate.statistics.roc import roc_auc


def test_the_fall_of_a_gap_curve_by_hand():
    curve, timesteps = [4.0, 5.0, 4.5, 1.0, 2.0], [900, 700, 500, 300, 100]
    assert claims.fall(curve) == pytest.approx(0.8)          # from 5 to 1
    assert claims.fall_timestep(curve, timesteps) == 300     # 4.5 -> 1
    assert claims.fall([1.0, 2.0, 3.0]) == 0
    assert claims.fall_timestep([2.0, 1.0, 0.9], [9, 8, 7]) == 8


def test_auc_counts_ties_half():
    assert roc_auc([2, 3], [0, 1]) == 1
    assert roc_auc([1, 1], [1, 1]) == 0.5
    assert roc_auc([1, 4], [2, 3]) == 0.5


def points(rates, alignments, transitions=(900, 700, 500)):
    return [found(r, a, t) for r, a, t in zip(rates, alignments, transitions, strict=True)]


def found(rate, alignment, transition=None):
    """What the claims look at of GroupFindings."""
    estimate = Estimate(rate, rate, rate, 10, 10)
    return SimpleNamespace(copy_rate=estimate, sim95=estimate, alignment=alignment, transition_timestep=transition, n=10)


def test_claims_hold_on_what_they_describe_and_not_on_its_opposite():
    plain = found(1.0, 0.9)
    good, flat = points([0.9, 0.4, 0.0], [0.9, 0.88, 0.5]), points([1.0, 1.0, 1.0], [0.9, 0.9, 0.9])
    assert claims.later_is_newer(good, plain).held
    assert not claims.later_is_newer(flat, plain).held
    assert claims.basin_narrows(good, plain).held
    assert not claims.basin_narrows(points([0.9, 0.8, 0.5], [0.9] * 3), plain).held
    assert claims.similarity_costs_alignment(good).held
    assert not claims.similarity_costs_alignment(points([0.9, 0.4, 0.0], [0.5, 0.8, 0.9])).held
    memorized, ordinary = np.array([[5, 5, 1.0]] * 9), np.array([[1, 2, 3.0]] * 9)
    assert claims.drops_tell(memorized, ordinary).held
    assert not claims.drops_tell(ordinary, memorized).held
    assert claims.drops_vary(np.array([[900, 700], [500, 600]])).held
    assert not claims.drops_vary(np.array([[900, 900], [500, 500]])).held
    rng = np.random.default_rng(0)
    base = rng.normal(500, 50, 40)
    assert claims.opposite_is_earlier(base, base + rng.normal(60, 30, 40)).held
    assert not claims.opposite_is_earlier(base, base + rng.normal(-10, 30, 40)).held
    assert claims.guidance_converges(rng.normal(0.8, 0.1, 20), rng.normal(0.1, 0.1, 20)).held
    assert not claims.guidance_converges([0.5] * 5, [0.5] * 5).held


def test_the_interval_of_a_mean_agrees_with_theory():
    values = np.random.default_rng(1).normal(3, 2, 400)
    mean, low, high = claims.mean_interval(values)
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * 2 / 400 ** 0.5, rel=0.15)
