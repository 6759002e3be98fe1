"""Which pictures of one set are the same, however cropped, framed or written over."""
import pytest
from drawings import drawing, keys, openers

from rotescope.datasets.geometry.near_copies import copies_among, is_same_picture, make_verifiers
from rotescope.datasets.images.clusters import find_pictures, look_at
from rotescope.datasets.images.edits import EDITS

NAMES = ("crop to 80 %", "border of 10 %", "text over it", "flip + crop to 80 %", "turned by 10°")


@pytest.fixture(scope="module")
def pictures():
    """Fifteen drawings; five of them again, edited."""
    drawn = [drawing(1, i, size=(160, 160), n=60) for i in range(15)]
    edits = [next(e for e in EDITS if e.name == name) for name in NAMES]
    return drawn + [e.make(drawn[i], drawn[9]) for i, e in enumerate(edits)]


@pytest.fixture(scope="module")
def verifiers(pictures):
    return make_verifiers(keys(len(pictures)), openers(pictures))


def test_edited_pictures_and_no_others_are_the_same(pictures, verifiers):
    told = []
    found = set(copies_among(openers(pictures), verifiers, lambda: told.append(1)))
    assert found == {(i, 15 + i) for i in range(5)}
    assert len(told) == len(pictures)
    looks = {str(i): look_at(image) for i, image in enumerate(pictures)}
    labels = find_pictures(list(looks), looks, found).labels
    assert [labels[15 + i] for i in range(5)] == list(labels[:5])
    assert len(set(labels)) == 15


def test_a_part_alone_is_not_the_same_picture(pictures, verifiers):
    half = next(e for e in EDITS if e.name == "crop to 50 %").make(pictures[7], pictures[8])
    for verifier in verifiers:
        prepared = verifier.prepare(half)
        matches = verifier.verify(prepared, [7])
        assert not any(is_same_picture(m, verifiers) for m in matches)
        if verifier.name == "points":
            assert matches[0].score > 5


def test_small_pictures_are_laid_on_one_another_by_pixels_alone():
    small = [drawing(2, i, size=(64, 64), n=9) for i in range(6)]
    assert [v.name for v in make_verifiers(keys(6), openers(small))] == ["pixels"]
