"""Generated pictures of every kind that a folder may hold: measured by what can be measured, or named."""
import numpy as np
import pytest
from drawings import drawing
from PIL import Image

from rotescope.evaluate.measurement.evaluation import score

ODD = ("1 x 1.png", "cmyk.jpg", "sixteen bits.png", "transparent.png", "animated.gif", "flat.png", "line.png", "sliver.png")


@pytest.fixture(scope="module")
def training():
    return [drawing(3, i, size=(96, 96), n=20) for i in range(8)]


@pytest.fixture(scope="module")
def folder(training, tmp_path_factory):
    """One odd picture of each kind; those that show something are copies of a training picture."""
    made, copy = tmp_path_factory.mktemp("odd"), training[2]
    Image.new("RGB", (1, 1), "red").save(made / "1 x 1.png")
    copy.convert("CMYK").save(made / "cmyk.jpg", quality=95)
    Image.fromarray(np.asarray(copy.convert("L")).astype(np.uint16) * 257).save(made / "sixteen bits.png")
    copy.convert("RGBA").save(made / "transparent.png")
    copy.save(made / "animated.gif", save_all=True, append_images=[training[3]])
    Image.new("RGB", (96, 96), (9, 99, 9)).save(made / "flat.png")
    Image.new("RGB", (20_000, 100), "blue").save(made / "line.png")
    copy.resize((4_000, 60)).save(made / "sliver.png")
    return made


def test_odd_pictures_are_measured_or_named(folder, training):
    report = score(folder, training)
    copied = {pair.image for pair in report.pairs if pair.is_copy}
    assert {"cmyk.jpg", "sixteen bits.png", "transparent.png", "animated.gif"} <= copied
    assert {"1 x 1.png", "flat.png"}.isdisjoint(copied)
    (left_out,) = report.left_out
    assert left_out.name == "line.png"
    assert "no picture, but a line" in left_out.reason
    (note,) = (note for note in report.notes if "nothing that could be compared" in note)
    assert note.startswith("2 generated images show nothing")


def test_a_training_set_of_flat_colours_calls_nothing_a_copy():
    """A threshold of 0 would call every picture a copy of it."""
    flat = [Image.new("RGB", (64, 64), (i, 2 * i, 250 - i)) for i in range(0, 100, 2)]
    report = score([drawing(4, 0, size=(64, 64)), flat[0].copy()], flat)
    assert report["none"]["ungrouped"].copies == 0
    assert report.copy_threshold > 0
    assert report.verdict.outcome != "passed" or any("nothing that could be compared" in note for note in report.notes)


def test_one_small_file_does_not_choose_the_descriptor_of_all():
    large = [drawing(5, i, size=(200, 200)) for i in range(5)]
    one_small = [large[0].resize((60, 60)), *large[1:]]
    assert score(large[:2], one_small, verify=False).descriptor == score(large[:2], large, verify=False).descriptor
