"""Intervals of shares whose images come prompt by prompt."""
import numpy as np
import pytest
from scipy.stats import binomtest

from rotescope.evaluate.statistics.clusters import clustered_interval, clustered_share, effective_images, prompts_needed
from rotescope.evaluate.statistics.estimate import clopper_pearson, share_estimate


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


def test_a_share_of_images_counts_their_prompts_whatever_these_are_called():
    hits, prompt = [True, False, True, True, False, False], ["b", "a", "b", "b", "a", "c"]
    found = clustered_share(hits, prompt)
    assert found[1:3] == clustered_interval([0, 3, 0], [2, 3, 1])
    assert (found.value, found.n_images, found.n_prompts) == (0.5, 6, 3)
    assert clustered_share(hits, range(6)) == share_estimate(3, 6, 6)  # one image each


@pytest.mark.parametrize(("copies", "each"), [(0, 4), (1, 4), (3, 2), (2, 1)])
def test_so_many_more_prompts_without_copies_bring_the_upper_end_down(copies, each):
    """Of 30 prompts `copies` copy in one image each; prompts without a copy are added until the interval ends at 5 %."""
    def upper(prompts):
        return clustered_interval([1] * copies + [0] * (prompts - copies), [each] * prompts)[1]
    image, prompt = np.tile(np.arange(each), 30), np.repeat(np.arange(30), each)
    found = clustered_share((image == 0) & (prompt < copies), prompt)
    needed = prompts_needed(0.05, found)
    exact = next(n for n in range(copies + 2, 1000) if upper(n) <= 0.05)
    assert abs(needed - exact) <= 0.05 * exact
    assert prompts_needed(0.05) == 72


def test_no_number_of_images_of_one_prompt_suffices():
    low, high = clustered_share(np.zeros(10_000), ["a fox"] * 10_000)[1:3]
    assert (low, high) == (0, 0.975)
