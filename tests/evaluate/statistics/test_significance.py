"""What is surprising: p-values by hand, uniform where nothing is copied, and generators whose copies are known."""
import numpy as np
import pytest
from instruments import noise, samples_folder, saved, training_folder, training_set
from scipy.stats import binomtest, kstest

from rotescope.common.errors import InputError
from rotescope.datasets.emoji.scenes import scenes
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.descriptors.descriptor import pixels
from rotescope.evaluate.measurement.findings import score_samples
from rotescope.evaluate.neighbours.index import build_index
from rotescope.evaluate.nulls.calibration import calibrated, exact_layer, nulls_of
from rotescope.evaluate.statistics.estimate import clopper_pearson
from rotescope.evaluate.statistics.prompt_evidence import nearest_p, smallest_p
from rotescope.evaluate.statistics.replication import images_needed, sim95, sim95_interval
from rotescope.evaluate.statistics.significance import (
    FDR,
    any_of,
    as_many_of,
    benjamini_hochberg,
    holm,
    null_needed,
    paired_p_value,
    surest_of,
    tail_p_values,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("data") / "train")


# ----- arithmetic

def test_within_the_null_a_p_value_is_a_rank_and_ties_count_against_significance():
    assert tail_p_values([0.5, 0.6, 0.05], [0.5, 0.5, 0.1]) == pytest.approx([3 / 4, 1 / 4, 1])
    assert tail_p_values([0.9], []) == [1]
    assert tail_p_values([0.9], np.zeros(99)) == pytest.approx([1 / 100])  # equal values have no tail
    null = np.arange(100.0)
    assert tail_p_values([50, 89], null) == pytest.approx([51 / 101, 12 / 101])  # 89 is the eleventh highest


def test_beyond_the_null_a_p_value_follows_its_tail_by_hand():
    """Of 0 … 99 the ten highest exceed 89 by 1 … 10, 55 together: a further value exceeds it by e with (1 + e / 55)^-10."""
    expected = [11 / 101 * (1 + e / 55) ** -10 for e in (1, 11, 55)]
    assert tail_p_values([90, 100, 144], np.arange(100.0)) == pytest.approx(expected)


@pytest.mark.parametrize("m", [10, 50, 400])
def test_p_values_of_an_exponential_null_are_uniform_however_few_it_has(m):
    rng = np.random.default_rng(m)
    p = np.concatenate([tail_p_values(rng.exponential(size=1), rng.exponential(size=m)) for _ in range(20_000)])
    for level in (0.1, 0.01, 0.001):
        noise = 4 * np.sqrt(level / 20_000)
        assert (p <= level).mean() <= level + noise
        assert m < 40 or (p <= level).mean() >= level - 1 / (m + 1) * (level == 0.1) - noise  # ranks come in steps


def test_one_of_several_and_as_many_of_several_by_hand():
    assert any_of(0.1, 3) == pytest.approx(1 - 0.9 ** 3)
    assert any_of(1e-18, 4) == pytest.approx(4e-18)
    assert as_many_of(2, 4, 0.01) == pytest.approx(binomtest(2, 4, 0.01, alternative="greater").pvalue)
    assert (as_many_of(0, 4, 0.01), as_many_of(4, 4, 0.5)) == (1, pytest.approx(1 / 16))
    assert surest_of((0.5, None, 0.01)) == pytest.approx(0.02)
    assert surest_of((0.8, 0.9)) == 1


def test_p_values_are_uniform_under_the_null_over_200_seeds():
    def one(seed):
        rng = np.random.default_rng(seed)
        return nearest_p(rng.beta(8, 3, 4), rng.beta(8, 3, 999))
    p = np.array([one(seed) for seed in range(200)])
    assert kstest(p, "uniform").pvalue > 0.01
    assert (p <= 0.05).mean() < 0.1


def test_benjamini_hochberg_by_hand():
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert benjamini_hochberg([]).shape == (0,)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.9]) == pytest.approx([1, 1])
    assert holm([]).shape == (0,)


def test_false_discoveries_stay_below_the_rate():
    """Of 100 prompts 20 are copied; over 50 runs, the mean share of false ones among those called significant."""
    shares = []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        top = np.r_[np.full(20, 2.0), rng.random(80)]
        called = benjamini_hochberg(tail_p_values(top, rng.random(5000))) <= 0.05
        assert called[:20].all()
        shares.append(called[20:].sum() / called.sum())
    assert np.mean(shares) <= 0.05


@pytest.mark.parametrize(("prompts", "images"), [(1, 1), (40, 1), (48, 4)])
def test_so_many_null_pictures_let_one_prompt_be_significant(prompts, images):
    def smallest_q(m):
        null = np.random.default_rng(0).beta(2, 5, m)
        return benjamini_hochberg(np.r_[smallest_p(images, null), np.ones(prompts - 1)])[0]
    m = null_needed(prompts, images)
    assert m == min(100 * prompts * images - images, 40)
    assert smallest_q(m) <= FDR < smallest_q(m - 1)


def test_pairing_sees_an_own_image_and_nothing_where_there_is_none():
    rng, prompt = np.random.default_rng(0), np.repeat(np.arange(30), 2)
    similarity = rng.random((60, 30))
    own, other, p = paired_p_value(similarity, prompt)
    assert own == pytest.approx(similarity[np.arange(60), prompt].mean())
    assert p > 0.05
    similarity[np.arange(60), prompt] += 0.5
    assert paired_p_value(similarity, prompt)[2] == pytest.approx(1 / 1000)
    assert other == pytest.approx(np.delete(similarity.ravel(), np.arange(60) * 30 + prompt).mean())


def test_bootstrap_covers_and_draws_prompts_whole():
    rng = np.random.default_rng(0)
    top1, prompt = rng.random(400), np.repeat(np.arange(100), 4)
    low, high = sim95_interval(top1, prompt)
    assert low < sim95(top1) < high
    alike = np.repeat(rng.random(100), 4)  # images of a prompt are equal: four of them are worth one
    narrow, wide = sim95_interval(alike, np.arange(400)), sim95_interval(alike, prompt)
    assert wide[1] - wide[0] > 1.2 * (narrow[1] - narrow[0])
    assert sim95_interval(top1, np.zeros(400)) == sim95_interval(top1, np.arange(400))


@pytest.mark.parametrize("copies", [0, 1, 5])
def test_images_needed_allows_for_copies(copies):
    n = images_needed(0.05, copies=copies)
    assert clopper_pearson(copies, n)[1] <= 0.05 < clopper_pearson(copies, n - 1)[1]


# ----- nulls and layers

def test_threshold_is_a_stated_quantile_of_a_stated_null(data):
    index = build_index(data, pixels())
    pictures = [(str(i), lambda i=i: noise(i)) for i in range(60)]
    nulls = nulls_of(index, heldout=pictures)
    by_train, by_heldout = calibrated(index, nulls), calibrated(index, nulls, 0.9, "heldout")
    assert by_train.rule.startswith("0.999 quantile of the similarity of each of 40 training images to its nearest other one")
    assert by_heldout.rule.startswith("0.9 quantile of the similarity of each of 60 held-out pictures")
    assert (nulls["heldout"] > by_heldout.threshold).mean() <= 0.1
    assert by_heldout.best_null == "heldout"
    assert calibrated(index, nulls_of(index)).best_null == "train"
    assert calibrated(index, nulls | {"heldout": nulls["heldout"][:19]}).best_null == "train"  # too few for a small p
    with pytest.raises(InputError, match="needs --base"):
        calibrated(index, nulls, null="base")
    with pytest.raises(InputError, match="no null 'luck'"):
        calibrated(index, nulls, null="luck")


def test_nothing_in_the_nulls_reaches_the_exact_layer(data):
    index = build_index(data, pixels())
    nulls = nulls_of(index)
    assert exact_layer(index, nulls, "pixels").threshold == max(0.95, np.nextafter(nulls["train"].max(), np.float32(2)))
    assert exact_layer(index, {"train": np.array([0.2, 0.97])}, "pixels").threshold > 0.97
    assert exact_layer(index, {"train": np.array([0.2, 0.99])}, "pixels").threshold == 0.95  # the same picture twice is no chance
    assert exact_layer(index, {"train": np.array([0.2]), "base": np.array([1.0])}, "pixels").threshold == 0.95  # a base may copy


def test_each_layer_reports_its_copies_and_either_makes_one(data, tmp_path, monkeypatch):
    """A calibrated threshold that nothing reaches leaves the copies to the exact layer."""
    monkeypatch.setattr("rotescope.evaluate.measurement.layers.check_threshold", lambda *_: None)  # 2 would be refused
    folder = samples_folder(tmp_path / "s", data, lambda method, i, seed: i < 5, seeds=(0,))
    either = score_samples(folder, data, copy_threshold=2.0, verify=False)["none"]["ungrouped"]
    assert (either.copies, either.copies_by) == (5, {"descriptor": 0, "exact": 5})
    alone = score_samples(folder, data, copy_threshold=2.0, exact="none", verify=False)["none"]["ungrouped"]
    assert (alone.copies, alone.copies_by) == (0, {"descriptor": 0})
    both = score_samples(folder, data, verify=False)
    assert {p.copied_by for p in both.pairs} == {("descriptor", "exact"), ()}
    with pytest.raises(InputError, match="no exact layer"):
        score_samples(folder, data, exact="magic")


# ----- through the whole score

def test_a_generator_that_copies_nothing_gets_uniform_p_values(tmp_path):
    """Training, held-out and generated pictures are all drawn alike: nobody copies."""
    train = load_source(training_folder(tmp_path / "train", 40, 1))
    heldout = load_source(saved(tmp_path / "held", [s.image for s in scenes(300, 2)]), need_captions=False)
    made = saved(tmp_path / "made", [s.image for s in scenes(150, 3)])
    report = score_samples(made, train, heldout, verify=False)
    p = [prompt.p for prompt in report.prompts]
    assert len(p) == 150
    assert kstest(p, "uniform").pvalue > 0.01
    assert sum(prompt.significant for prompt in report.prompts) <= 1
    assert (report.p_values.null, report.p_values.n, report.p_values.fdr, report.p_values.needed) == ("heldout", 300, FDR, None)


def test_a_generator_that_copies_k_prompts_has_k_significant_ones(tmp_path):
    train = load_source(training_folder(tmp_path / "train", 40, 1))
    heldout = load_source(saved(tmp_path / "held", [s.image for s in scenes(200, 2)]), need_captions=False)
    folder = samples_folder(tmp_path / "s", train.examples[:30], lambda method, i, seed: i < 9, seeds=(0,))
    report = score_samples(folder, train, heldout, verify=False)
    assert [p.prompt_index for p in report.prompts if p.significant] == list(range(9))
    assert report["none"]["ungrouped"].prompts_significant == 9
    pairing = report.shuffled_pairing["none"]
    assert pairing.own > pairing.shuffled + 0.1
    assert pairing.p < 0.01
