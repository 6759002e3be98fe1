"""Small pictures on disk: the same frames as from the pictures themselves; grown, cut short, shared, refused."""
import os

import numpy as np
import pytest
import torch
from drawings import drawing, keys, openers

from rotescope.common.errors import InputError
from rotescope.common.processes import alone_in
from rotescope.datasets.geometry.pixel_verifier import PixelVerifier
from rotescope.datasets.geometry.small_pictures import RECORD, SmallPictures
from rotescope.datasets.geometry.structure import frame_of, small_picture

SIZES = [(512, 384), (64, 64), (40, 64), (20, 20), (300, 20), (127, 128), (64, 200), (1000, 1000)]
PICTURES = [drawing(i, size=size, n=20) for i, size in enumerate(SIZES)]


def opened(folder, which=range(8)):
    """-> which pictures are opened, and the small ones."""
    calls = []
    given = [lambda i=i: calls.append(i) or PICTURES[i] for i in which]
    kept = SmallPictures(folder).keep([keys(8)[i] for i in which], given)
    return sorted(calls), [opener() for opener in kept]


def test_frames_are_those_of_the_pictures_themselves(tmp_path):
    calls, small = opened(tmp_path / "s")
    assert calls == list(range(8))
    for image, kept in zip(PICTURES, small, strict=True):
        assert np.array_equal(np.asarray(kept), np.asarray(small_picture(image)))
        assert torch.equal(frame_of(image).channels, frame_of(kept).channels)
        assert (frame_of(image).extent, frame_of(image).grey) == (frame_of(kept).extent, frame_of(kept).grey)


def test_only_what_is_new_is_opened_in_any_order(tmp_path):
    assert opened(tmp_path / "s", range(5))[0] == [0, 1, 2, 3, 4]
    calls, small = opened(tmp_path / "s", range(7, -1, -1))
    assert calls == [5, 6, 7]
    assert all(np.array_equal(np.asarray(a), np.asarray(small_picture(b))) for a, b in zip(small, PICTURES[::-1], strict=True))
    assert opened(tmp_path / "s", [3, 3, 1])[0] == []


def test_a_record_that_was_cut_short_is_written_again(tmp_path):
    opened(tmp_path / "s")
    file = tmp_path / "s/pictures.bin"
    os.truncate(file, 5 * RECORD.itemsize + 7)
    calls, small = opened(tmp_path / "s")
    assert calls == [5, 6, 7]
    assert np.array_equal(np.asarray(small[6]), np.asarray(small_picture(PICTURES[6])))
    assert file.stat().st_size == 8 * RECORD.itemsize


def test_whoever_only_reads_waits_for_nobody(tmp_path):
    opened(tmp_path / "s", range(4))
    with alone_in(tmp_path / "s"):
        assert opened(tmp_path / "s", [2, 0])[0] == []


@pytest.mark.parametrize(("name", "text"), [("notes.txt", "mine"), ("small.json", '{"version": 0}'), ("small.json", "no JSON")])
def test_another_folder_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="holds (no )?small pictures"):
        SmallPictures(tmp_path)


def test_matches_are_the_same_with_a_folder_and_without(tmp_path):
    turned = [p.rotate(8) for p in PICTURES[:3]]

    def matches(folder):
        verifier = PixelVerifier(keys(8), openers(PICTURES), folder)
        prepared = [verifier.prepare(image) for image in turned]
        return [verifier.verify(one, verifier.candidates(one, 4)) for one in prepared]
    plain = matches(None)
    assert matches(tmp_path) == plain
    assert matches(tmp_path) == plain
    assert any(plain)
