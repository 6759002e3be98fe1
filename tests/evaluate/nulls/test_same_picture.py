"""The same picture in other bytes: no background, no held-out picture; what is alike by chance stays both."""
import io

import numpy as np
import pytest
from instruments import saved
from PIL import Image

from rotescope.datasets.emoji.scenes import scenes
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.descriptors.descriptor import pixels
from rotescope.evaluate.measurement.findings import score_samples
from rotescope.evaluate.neighbours.index import build_index
from rotescope.evaluate.nulls.calibration import calibrated, exact_layer, nulls_of, without
from rotescope.evaluate.nulls.same_picture import FEW, Twins, enough


def recompressed(image, quality=60):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def edited(image):
    """A copy that no descriptor of pixels takes for the same: cropped by 2 px and dimmed."""
    return image.crop((2, 2, 62, 62)).resize((64, 64), Image.BICUBIC).point(lambda value: 0.9 * value)


def pictures(n, seed=7):
    return [scene.image for scene in scenes(n, seed)]


def source(folder, images):
    return load_source(saved(folder, images), need_captions=False)


@pytest.fixture(scope="module")
def images():
    return pictures(300)


@pytest.fixture(scope="module")
def clean(images, tmp_path_factory):
    return source(tmp_path_factory.mktemp("clean") / "train", images)


@pytest.fixture(scope="module")
def repeating(images, tmp_path_factory):
    """Six of the 300 again as JPEG, of which one twice; their rows are 300 to 306."""
    again = [*(recompressed(image) for image in images[:6]), recompressed(images[0], 50)]
    return source(tmp_path_factory.mktemp("repeating") / "train", [*images, *again])


def layers_of(manifest):
    index = build_index(manifest, pixels())
    twins = Twins(index.examples)
    nulls = nulls_of(index, twins=twins)
    return calibrated(index, nulls, twins=twins), exact_layer(index, nulls, "pixels")


def test_training_images_again_in_other_bytes_leave_the_thresholds_as_they_were(clean, repeating):
    (layer, exact), (again, exact_again) = layers_of(clean), layers_of(repeating)
    assert again.threshold == pytest.approx(layer.threshold, abs=0.02)
    assert exact_again.threshold == pytest.approx(exact.threshold, abs=0.01)
    assert not layer.twins.clusters
    assert sorted(map(sorted, set(map(frozenset, again.twins.clusters.values())))) == [
        [0, 300, 306], *([i, 300 + i] for i in range(1, 6))]
    assert "to its nearest other one, the same picture in other bytes aside, by pixels" in again.rule
    assert "aside" not in layer.rule


def test_what_is_left_of_a_null_is_the_likeness_to_the_nearest_other_picture(repeating):
    """By the whole matrix, with all the pairs that were made left out."""
    index = build_index(repeating, pixels())
    picture = np.r_[np.arange(300), np.arange(6), 0]
    every = np.where(picture[:, None] == picture, -1, index.vectors @ index.vectors.T).max(1)
    found = Twins(index.examples).background(index.vectors)
    top = enough(len(found), 0.99)
    assert (len(found), top) == (307, FEW)
    assert np.allclose(np.sort(found)[-top:], np.sort(every)[-top:], atol=1e-6)


def test_copies_are_found_though_training_images_repeat(images, clean, repeating, tmp_path):
    made = saved(tmp_path / "made", [edited(image) for image in images[:40]])
    reports = [score_samples(made, data, verify=False, exact="none") for data in (clean, repeating)]
    copies = [report["none"]["ungrouped"].copies for report in reports]
    assert copies[0] == copies[1] >= 38
    report = reports[1]
    note, = (note for note in report.notes if "other bytes" in note)
    assert note.startswith("7 training images were found to repeat others in other bytes: ")
    assert "0300.png is " in note


def test_a_heldout_picture_that_was_trained_on_in_other_bytes_is_left_out_by_name(images, clean, tmp_path):
    held = source(tmp_path / "held", [*pictures(60, 8), recompressed(images[3]), images[4].resize((96, 96), Image.BICUBIC)])
    made = saved(tmp_path / "made", pictures(5, 9))
    report = score_samples(made, clean, held, verify=False)
    assert report.background.heldout.n == 60
    assert [item.name[-8:] for item in report.left_out] == ["0060.png", "0061.png"]
    assert "is the training image" in report.left_out[0].reason
    assert "2 held-out pictures are left out" in report.notes[0]
    other = source(tmp_path / "other", pictures(60, 8))
    assert score_samples(made, clean, other, verify=False).background == report.background


def test_a_training_set_of_one_picture_has_no_background(images, tmp_path):
    found = nulls_of(build_index(source(tmp_path / "one", [images[0], recompressed(images[0])]), pixels()))
    assert [len(found[name]) for name in ("train", "heldout", "base")] == [0, 0, 0]
    assert len(without(found, np.zeros(0, bool))["heldout"]) == 0


def test_few_pictures_are_opened_and_a_cap_is_told(repeating):
    index = build_index(repeating, pixels())
    twins = Twins(index.examples)
    twins.background(index.vectors)
    assert len(twins._told) <= FEW + 7 * 3
    assert not any("Only the" in note for note in twins.notes())
    few = Twins(index.examples, looks=2)
    few.background(index.vectors)
    assert (few.left, len(few._told)) == (0, 2)
    assert any("Only the 2 most similar pairs were looked at" in note for note in few.notes())
