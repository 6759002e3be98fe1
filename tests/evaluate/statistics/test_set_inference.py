"""Was a set used? Uniform or conservative where it was not, certain where many weak signals say so, by hand where one does."""
import numpy as np
import pytest

from rotescope.evaluate.statistics.set_inference import discriminant, infer_use


def test_the_direction_is_fishers_by_hand():
    """Two uncorrelated signals of deviations 1 and 2, apart by 1 and by 2: shrinking towards the diagonal changes nothing."""
    b = np.array([[1, 2], [1, -2], [-1, 2], [-1, -2.0]])
    assert discriminant(b + (1, 2), b) == pytest.approx([1, 0.5])


def test_a_signal_may_be_lower_for_what_was_used():
    rng = np.random.default_rng(0)
    used, unused = rng.normal(-1.5, 1, (60, 1)), rng.normal(0, 1, (60, 1))
    assert infer_use(used, unused).p < 1e-4
    assert infer_use(used, unused).auc == pytest.approx(0.856, abs=0.05)   # Φ(1.5 / √2)


def test_many_weak_signals_of_seventy_pictures_are_certain():
    """None of ten signals tells one picture from another (AUC .66); all together tell the set."""
    rng = np.random.default_rng(1)
    used, unused = rng.normal(0.6, 1, (70, 10)), rng.normal(0, 1, (70, 10))
    alone = [infer_use(used[:, [i]], unused[:, [i]]).auc for i in range(10)]
    assert np.mean(alone) < 0.7
    assert infer_use(used, unused).p < 1e-4


def test_unused_sets_are_rarely_called_used():
    """At the level of 5 %, of 200 sets that were not used."""
    rng = np.random.default_rng(2)
    ps = [infer_use(rng.normal(size=(24, 6)), rng.normal(size=(40, 6)), splits=10).p for _ in range(200)]
    assert np.mean(np.array(ps) <= 0.05) <= 0.05
    assert max(ps) <= 1


def test_too_few_pictures_say_nothing_and_what_is_not_finite_is_left_out():
    x = np.random.default_rng(3).normal(size=(9, 2))
    assert infer_use(x[:7], x) is None
    assert infer_use(x[:0], x) is None
    x[0, 0] = np.nan
    assert infer_use(x, x[1:]).n_set == 8
    assert infer_use(x[:8], x) is None


def test_a_signal_that_never_varies_is_no_trouble():
    assert infer_use(np.ones((10, 2)), np.ones((12, 2))).p == 1
