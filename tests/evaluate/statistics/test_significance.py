"""What is surprising: p-values by hand, uniform where nothing is copied, and generators whose copies are known."""
from itertools import combinations

import numpy as np
import pyarrow.parquet as pq
import pytest
from instruments import noise, samples_folder, saved, training_folder, training_set
from places import EMOJI
from scipy.stats import kstest

from rotescope.common.errors import InputError
from rotescope.datasets.emoji.scenes import compose, scenes
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.descriptors.descriptor import pixels
from rotescope.evaluate.descriptors.registry import get_descriptor
from rotescope.evaluate.measurement.findings import score_samples
from rotescope.evaluate.neighbours.index import build_index
from rotescope.evaluate.nulls.calibration import calibrated, exact_layer, nulls_of
from rotescope.evaluate.report.report_types import PValueBasis
from rotescope.evaluate.statistics.estimate import clopper_pearson
from rotescope.evaluate.statistics.replication import images_needed, sim95, sim95_interval
from rotescope.evaluate.statistics.significance import FDR, benjamini_hochberg, null_needed, paired_p_value, rank_p_values


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("data") / "train")


# ----- arithmetic

@pytest.mark.parametrize("s", [1, 2, 3])
def test_p_value_is_the_share_of_orders_as_extreme(s):
    """Which s of m + s ranks are the prompt's own: every choice is as likely, so count those with a best as good."""
    m = 5
    for r in range(m + 1):  # r null values at or above the best of the s
        above = [sum(rank > max(own) for rank in range(m + s)) for own in combinations(range(m + s), s)]
        expected = np.mean([a <= r for a in above])
        null = np.r_[np.full(r, 2.0), np.zeros(m - r)]
        assert rank_p_values([1.0], [s], null)[0] == pytest.approx(expected)


def test_ties_count_against_significance():
    assert rank_p_values([0.5], [1], [0.5, 0.5, 0.1])[0] == pytest.approx(3 / 4)
    assert rank_p_values([0.9], [1], np.zeros(99))[0] == pytest.approx(1 / 100)
    assert rank_p_values([0.9], [4], [])[0] == 1


def test_p_values_are_uniform_under_the_null_over_200_seeds():
    def one(seed):
        rng = np.random.default_rng(seed)
        null, own = rng.beta(8, 3, 999), rng.beta(8, 3, 4)
        return rank_p_values([own.max()], [4], null)[0]
    p = np.array([one(seed) for seed in range(200)])
    assert kstest(p, "uniform").pvalue > 0.01
    assert (p <= 0.05).mean() < 0.1


def test_benjamini_hochberg_by_hand():
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert benjamini_hochberg([]).shape == (0,)


def test_false_discoveries_stay_below_the_rate():
    """Of 100 prompts 20 are copied; over 50 runs, the mean share of false ones among those called significant."""
    shares = []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        top = np.r_[np.full(20, 2.0), rng.random(80)]
        called = benjamini_hochberg(rank_p_values(top, np.ones(100), rng.random(5000))) <= 0.05
        assert called[:20].all()
        shares.append(called[20:].sum() / called.sum())
    assert np.mean(shares) <= 0.05


@pytest.mark.parametrize(("prompts", "images"), [(40, 1), (48, 4)])
def test_null_needed_is_the_smallest_that_lets_one_prompt_be_significant(prompts, images):
    def smallest_q(m):
        return benjamini_hochberg(np.r_[rank_p_values([2.0], [images], np.zeros(m)), np.ones(prompts - 1)])[0]
    m = null_needed(prompts, images)
    assert smallest_q(m) <= 0.05 + 1e-12 < smallest_q(m - 1)


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
    pictures = [(str(i), lambda i=i: noise(i)) for i in range(30)]
    nulls = nulls_of(index, heldout=pictures)
    by_train, by_heldout = calibrated(index, nulls), calibrated(index, nulls, 0.9, "heldout")
    assert by_train.rule.startswith("0.99 quantile of the similarity of each of 40 training images to its nearest other one")
    assert by_heldout.rule.startswith("0.9 quantile of the similarity of each of 30 held-out pictures")
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


def test_each_layer_reports_its_copies_and_either_makes_one(data, tmp_path):
    """A calibrated threshold that nothing reaches leaves the copies to the exact layer."""
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
    assert report.p_values == PValueBasis("heldout", 300, smallest=1 / 301, fdr=0.05, needed=2999)


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


@pytest.mark.slow
def test_a_generator_that_memorized_nothing_leaks_nothing():
    """Fresh scenes of training captions, 100 × 4 in each of 15 runs: copies>0 and copy_rate>0.01 break in all, leaked prompts in
    hardly any."""
    data, held = (load_source(EMOJI / f"{split}.parquet") for split in ("finetune", "heldout"))
    told = pq.read_table(EMOJI / "finetune.parquet", columns=["objects", "ground"]).to_pylist()
    index = build_index(data, get_descriptor("pixels"))
    nulls = nulls_of(index, [(e.sha256, e.open) for e in held])
    layer, exact = calibrated(index, nulls), exact_layer(index, nulls, "pixels")
    rng, copies, leaked = np.random.default_rng(5), [], []
    for _ in range(15):
        rows = rng.choice(len(data), 100, replace=False)
        made = [compose(told[i]["objects"], told[i]["ground"], rng).image for i in np.repeat(rows, 4)]
        vectors = index.embed([(str(i), lambda image=image: image) for i, image in enumerate(made)])
        similarity = index.nearest(vectors)[0].reshape(100, 4)
        own = (vectors.reshape(100, 4, -1) @ index.vectors[[index.rows[data[i].image_id] for i in rows], :, None])[..., 0]
        q = benjamini_hochberg(rank_p_values(similarity.max(1), [4] * 100, nulls["heldout"]))
        copied = (similarity >= layer.threshold).any(1)
        copies.append((similarity >= layer.threshold).sum())
        leaked.append((copied & (q <= FDR) | (own >= exact.threshold).any(1)).sum())
    assert np.mean(np.array(copies) > 0) > 0.9
    assert np.mean(np.array(copies) / 400 > 0.01) > 0.4
    assert np.mean(np.array(leaked) > 0) <= 0.05
