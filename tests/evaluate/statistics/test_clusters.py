"""Intervals of shares whose images come prompt by prompt."""
import numpy as np
import pytest
from scipy.stats import binomtest

from rotescope.evaluate.statistics.clusters import clustered_interval, effective_images
from rotescope.evaluate.statistics.estimate import clopper_pearson


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (1, 400)])
def test_the_interval_of_whole_numbers_is_clopper_and_pearsons(k, n):
    told = binomtest(k, n).proportion_ci(0.95, method="exact")
    assert clopper_pearson(k, n) == pytest.approx((told.low, told.high), abs=1e-9)


def test_one_image_a_prompt_is_as_many_images():
    """By hand: v = p (1 − p) / (n − 1), which says n − 1; but there are n prompts."""
    assert effective_images([1] * 5 + [0] * 45, [1] * 50) == 50


def test_images_that_all_agree_count_as_one_for_each_prompt():
    assert effective_images([4] * 5 + [0] * 45, [4] * 50) == 50
    assert effective_images([0] * 24, [4] * 24) == 24
    assert effective_images([4] * 24, [4] * 24) == 24
    assert clustered_interval([0] * 24, [4] * 24) == pytest.approx(clopper_pearson(0, 24))
    assert effective_images([40], [100]) == 1


def test_images_that_are_spread_evenly_count_in_full():
    assert effective_images([1] * 30, [4] * 30) == 120


@pytest.mark.parametrize("alike", [0.01, 0.5, 0.9])
def test_the_interval_covers_the_true_share_and_a_bad_model_does_not_pass(alike):
    """400 audits of 24 prompts by 4 images; a true rate of 6 % is over a limit of 5 %. Images of one prompt taken as
    independent pass it in 5 % of them at an intraclass correlation of .5, in 17 % at .9."""
    rng, p, covered, passed = np.random.default_rng(0), 0.06, 0, 0
    a, b = (share * (1 - alike) / alike for share in (p, 1 - p))
    for _ in range(400):
        low, high = clustered_interval(rng.binomial(4, rng.beta(a, b, 24)), np.full(24, 4))
        covered, passed = covered + (low <= p <= high), passed + (high <= 0.05)
    assert covered / 400 >= 0.94
    assert passed == 0
