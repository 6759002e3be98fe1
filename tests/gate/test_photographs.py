"""The gate on pictures that this project did not make: windows of photographs, in memory, through `score`."""
import numpy as np
import pytest
from PIL import Image, ImageOps

from rotescope import score

skimage_data = pytest.importorskip("skimage.data")
TRAINED, OTHERS = ("astronaut", "coffee"), ("chelsea", "rocket", "camera", "coins")
SIDE = 96


def windows(*names):
    """Windows of photographs that do not overlap."""
    found = []
    for name in names:
        image = Image.fromarray(np.asarray(getattr(skimage_data, name)())).convert("RGB")
        image = image.resize((max(480, image.width), max(480, image.height)))
        found += [image.crop((x, y, x + SIDE, y + SIDE)) for y in range(0, 480, SIDE) for x in range(0, 480, SIDE)]
    return found


@pytest.fixture(scope="module")
def training():
    return windows(*TRAINED)


@pytest.fixture(scope="module")
def others():
    return windows(*OTHERS)[::2][:45]


def outcome_of(images, training, **given):
    report = score(images, training, **given)
    return report.verdict.outcome, {c.name: c.outcome for c in report.verdict.controls}


def test_photographs_that_show_something_pass_the_control_and_black_ones_do_not(training, others):
    few = others[:8]
    assert outcome_of(few, training, verify=False)[1]["drawn"] == "passed"
    outcome, controls = outcome_of([*few, *[Image.new("RGB", (SIDE, SIDE))] * 2], training, verify=False, fail_on="copies>2")
    assert (outcome, controls["drawn"]) == ("undecided", "undecided")


@pytest.mark.slow
@pytest.mark.parametrize(("added", "expected"), [
    (lambda training: [], "passed"), (lambda training: [ImageOps.mirror(training[7])] * 3, "failed")])
def test_photographs_that_copy_nothing_pass_and_copies_do_not(added, expected, training, others):
    images = [*others, *windows("chelsea")[1::2], *windows("rocket")[1::2][:9], *added(training)]
    outcome, controls = outcome_of(images, training, fail_on="copies>2")
    assert (outcome, controls["drawn"], controls["enough"]) == (expected, "passed", "passed")
    assert controls["a planted copy is found"] == "passed"
