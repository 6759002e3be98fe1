"""Whether a prompt leaks, by all of its images: p-values where nothing is copied, and what gives a leak away."""
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import pytest
from instruments import laid
from places import EMOJI

from rotescope.datasets.emoji.scenes import compose
from rotescope.datasets.geometry.match import MatchThreshold, VerifiedMatches
from rotescope.datasets.manifest import Example
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.descriptors.registry import get_descriptor
from rotescope.evaluate.inputs.samples import Record, Samples
from rotescope.evaluate.measurement.layers import make_layers
from rotescope.evaluate.measurement.lookalikes import LookAlikes
from rotescope.evaluate.measurement.per_image import Matched, Measured, measure
from rotescope.evaluate.measurement.per_prompt import evidence_of, prompt_findings
from rotescope.evaluate.neighbours.index import Index
from rotescope.evaluate.nulls.calibration import Layer
from rotescope.evaluate.nulls.same_picture import Twins
from rotescope.evaluate.options import Measuring

DIM, SAME_WORDS = 16, 5     # of the vectors; training pictures of one caption
EQUAL, UNEQUAL = (4,) * 24, (1, 2, 3, 4, 6, 12) * 4


@dataclass
class Drawn:
    """Vectors of a world in which a caption says roughly what a picture looks like, and of a model that knows captions alone."""
    layer: Layer
    measured: Measured
    prompts: list


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def world(seed, n=100, sizes=EQUAL, twins=False, copied=(), own=True, thresholds=None, matches=None):
    """n training pictures and as many held-out ones, prompts of so many images each. twins: every tenth training picture is
    there twice. copied: (prompt, image) that show the prompt's own picture, roughly."""
    rng = np.random.default_rng(seed)
    meaning = unit(rng.normal(size=(max(n // SAME_WORDS, 2), DIM)))
    caption = rng.integers(0, len(meaning), n)

    def pictures(captions):
        return unit(meaning[captions] + 0.5 * rng.normal(size=(len(captions), DIM)))
    training, held = pictures(caption), pictures(rng.integers(0, len(meaning), max(n, 100)))
    examples = tuple(Example(f"id{i}", (f"word{c} word{c % 7}",), "", None, f"{i:064}") for i, c in enumerate(caption))
    known = Twins(examples, looks=0)
    for i in range(0, n - 1, 10) if twins else ():
        training[i + 1] = unit(training[i] + 0.01 * rng.normal(size=DIM))
        known.join(i, i + 1)
    index = Index(get_descriptor("pixels"), examples, np.ones(n), {e.image_id: i for i, e in enumerate(examples)}, training)
    rows = rng.integers(0, n, len(sizes))
    prompts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    vectors = pictures(caption[np.repeat(rows, sizes)])
    for p, i in copied:
        vectors[prompts[p][i]] = unit(training[rows[p]] + 0.07 * rng.normal(size=DIM))
    layer = Layer(index, 0.99, "", {"train": known.background(training), "heldout": index.nearest(held)[0]}, known)
    expected = np.repeat(rows, sizes) if own else np.full(sum(sizes), -1)
    top1, row = index.nearest(vectors)
    near = Matched(top1, row, np.where(expected < 0, np.nan, (vectors * training[expected]).sum(1)), 0.99,
                   np.zeros((len(vectors), 0), bool))
    nothing = np.full(len(vectors), np.nan)
    verified = VerifiedMatches(matches or ((),) * len(vectors), thresholds) if thresholds else None
    measured = Measured(vectors, {"descriptor": near}, nothing, nothing, np.zeros((len(vectors), 0)), np.zeros(0, np.int64),
                        expected, verified)
    return Drawn(layer, measured, list(prompts))


def samples_of_prompts(drawn):
    where = {int(i): p for p, at in enumerate(drawn.prompts) for i in at}
    return Samples(None, tuple(Record(str(i), prompt_index=where[i], prompt=f"prompt {where[i]}", seed=i)
                               for i in range(len(drawn.measured.vectors))))


def findings(drawn):
    return prompt_findings(samples_of_prompts(drawn), drawn.measured, drawn.layer)


# ----- where nothing is copied

def null_p_values(draws, **how):
    """-> (draws, prompts) of each p-value, {name: array}."""
    told = {name: [] for name in ("nearest", "own", "agreement", "p")}
    for seed in range(draws):
        drawn = world(seed, **how)
        evidence = evidence_of(drawn.measured, drawn.layer, drawn.prompts)
        for name, found in told.items():
            found.append([1.0 if getattr(e, name) is None else getattr(e, name) for e in evidence])
    return {name: np.array(found) for name, found in told.items()}


def check_never_liberal(p):
    """No p-value is small more often than it says."""
    for level in (0.1, 0.01, 0.001):
        small = (p["p"] <= level).mean(1)  # prompts of a draw share their training pictures
        assert small.mean() <= level + 3 * max(small.std(), np.sqrt(level / p["p"].shape[1])) / np.sqrt(len(small)), level


def test_a_model_that_knows_captions_alone_has_no_small_p_values():
    check_never_liberal(null_p_values(30, sizes=UNEQUAL, twins=True))


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("twins", [False, True])
@pytest.mark.parametrize("sizes", [EQUAL, UNEQUAL])
@pytest.mark.parametrize("n", [10, 100, 3000])
def test_p_values_are_never_liberal_over_200_draws(n, sizes, twins, own):
    check_never_liberal(null_p_values(200, n=n, sizes=sizes, twins=twins, own=own))


@pytest.mark.slow
def test_a_generator_that_memorized_nothing_leaks_nothing():
    """Fresh scenes of training captions, 100 × 4 in each of 15 runs: copies>0 breaks in most, leaked prompts in none."""
    data, held = (load_source(EMOJI / f"{split}.parquet") for split in ("finetune", "heldout"))
    told = pq.read_table(EMOJI / "finetune.parquet", columns=["objects", "ground"]).to_pylist()
    layers = make_layers(64, data, held, None, Measuring(copy_quantile=0.99))
    rng, copies, leaked = np.random.default_rng(5), [], []
    for _ in range(15):
        rows = rng.choice(len(data), 100, replace=False)
        pictures = {f"{i}-{seed}": compose(told[i]["objects"], told[i]["ground"], rng).image for i in rows for seed in range(4)}
        samples = Samples(None, tuple(Record(f"{i}-{seed}", prompt_index=int(i), prompt=data[i].captions[0], seed=seed,
                                             image_id=data[i].image_id) for i in rows for seed in range(4)), held=pictures)
        measured = measure(samples, layers, data)
        copies.append(measured.copied.sum())
        leaked.append(sum(p.leaked for p in prompt_findings(samples, measured, layers["descriptor"])))
    assert np.mean(np.array(copies) > 0) > 0.6
    assert sum(leaked) == 0


# ----- what gives a leak away

@pytest.mark.parametrize("copied", [1, 2, 4])
@pytest.mark.parametrize("own", [True, False])
def test_rough_copies_of_one_picture_are_seen_by_their_number(own, copied):
    """As like as no threshold calls a copy: two or more of four tell, where the own picture is known; four, where it is not; and
    no number of them passes."""
    drawn = world(3, copied=[(7, i) for i in range(copied)], own=own)
    told = findings(drawn)
    assert not drawn.measured.copied.any()
    leaking = [p.prompt_index for p in told if p.leaked]
    assert leaking in ([[7]] if copied > (1 if own else 2) else [[], [7]])
    assert told[7].leaked or told[7].unresolved
    trace = told[7].evidence.own if own else told[7].evidence.agreement
    assert copied == 1 or trace < 1e-3


def test_a_large_empty_prompt_beside_small_ones_is_judged_by_its_own_images():
    """An empty prompt of 100 images, 23 of them copies, beside 24 prompts of four: by verified matches alone, with 400 null
    pictures of which none matches."""
    sizes = (100, *EQUAL)
    matches = tuple((laid(i),) if i < 23 else () for i in range(sum(sizes)))
    threshold = {"points": MatchThreshold("points", 9.0, "", 400, 0.0)}
    told = findings(world(1, sizes=sizes, own=False, thresholds=threshold, matches=matches))
    assert [p.prompt_index for p in told if p.leaked] == [0]
    assert told[0].copies == 23
    one = findings(world(1, sizes=sizes, own=False, thresholds=threshold, matches=(*matches[:1], *((),) * (sum(sizes) - 1))))
    assert not any(p.leaked for p in one)  # one of a hundred is what chance brings


def test_matches_count_by_their_number():
    """One of four may be chance, three of four are none."""
    def leaked(k):
        matches = tuple((laid(5),) if i < k else () for i in range(96))
        told = findings(world(2, own=False, thresholds={"points": MatchThreshold("points", 9.0, "", 400, 0.0)}, matches=matches))
        return [p.prompt_index for p in told if p.leaked]
    assert (leaked(1), leaked(3)) == ([], [0])


def test_copies_that_no_null_could_tell_from_chance_are_unresolved():
    drawn = world(4, n=10, copied=[(7, 0)], own=False)
    few = Layer(drawn.layer.index, 0.95, "", {name: v[:10] for name, v in drawn.layer.nulls.items()}, drawn.layer.twins)
    near = drawn.measured.near
    measured = Measured(drawn.measured.vectors, {"descriptor": Matched(near.top1, near.row, near.own, 0.95, near.watched)},
                        *(getattr(drawn.measured, f) for f in ("alignment", "hit", "features", "watched_rows", "expected")))
    told = prompt_findings(samples_of_prompts(drawn), measured, few)
    assert [p.prompt_index for p in told if p.copies and not p.leaked and p.unresolved]


# ----- look-alikes

def test_look_alikes_share_words_and_are_never_the_same_picture():
    drawn = world(5, twins=True)
    alike = LookAlikes(drawn.layer, drawn.measured.vectors, drawn.prompts, [0] * len(drawn.prompts))
    examples, rows = drawn.layer.index.examples, alike.rows_alike([0, 10, 55], 2)
    for anchor, others in zip([0, 10, 55], rows, strict=True):
        same = [i for i, e in enumerate(examples) if e.captions == examples[anchor].captions and i != anchor]
        assert len(set(others)) == 2
        assert anchor not in others
        assert anchor % 10 or anchor + 1 not in others  # its twin
        assert len(same) < 12 or set(others) <= set(same)
