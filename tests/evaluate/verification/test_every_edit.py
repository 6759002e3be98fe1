"""A model that always copies, and one that never does, under every edit: the share of copies reads exactly 1 and exactly 0."""
from dataclasses import dataclass

import pytest
from drawings import drawing
from PIL import Image

from rotescope.datasets.images.edits import EDITS
from rotescope.evaluate.measurement.evaluation import score

pytestmark = pytest.mark.slow
SIDE, SHAPES = (192, 192), 70


@dataclass(frozen=True)
class Drawn:
    """As `score` takes it: the edit is the group."""
    image: Image.Image
    group: str
    prompt: str = "a drawing"


@pytest.fixture(scope="module")
def training():
    return [drawing(10, i, size=SIDE, n=SHAPES) for i in range(64)]


def groups_of(pictures, training):
    """Two of the pictures under every edit, with a partner that nobody trained on -> figures by edit."""
    partner = drawing(12, 0, size=SIDE, n=SHAPES)
    made = [Drawn(e.make(p, partner), e.name) for e in EDITS for p in pictures[:2]]
    return score(made, training, alignment="none")["none"].groups


def test_always_copying_reads_one(training):
    found = groups_of(training[5:], training)
    for edit in EDITS:
        figures = found[edit.name]
        assert figures.copies + figures.partial_copies == figures.n == 2, edit.name
        if not edit.partial:
            assert figures.copy_rate.value == 1, edit.name


def test_never_copying_reads_zero(training):
    found = groups_of([drawing(11, i, size=SIDE, n=SHAPES) for i in range(2)], training)
    for edit in EDITS:
        assert (found[edit.name].copies, found[edit.name].partial_copies) == (0, 0), edit.name
