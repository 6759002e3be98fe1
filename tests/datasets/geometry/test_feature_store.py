"""Local features on disk: grown, cut short, killed, refused; and the votes that they cast."""
import os
import subprocess
import sys

import numpy as np
import pytest
from drawings import drawing, keys, openers
from places import ROOT

from rotescope.common.errors import InputError
from rotescope.datasets.geometry import feature_store
from rotescope.datasets.geometry.feature_store import FeatureMemory, FeatureStore
from rotescope.datasets.geometry.feature_votes import FeatureVotes
from rotescope.datasets.geometry.local_features import local_features

PICTURES = [drawing(i, size=(96, 64 + 8 * i), n=30) for i in range(8)]


def same(one, other):
    return len(one) == len(other) and all(
        a.size == b.size and all(np.array_equal(getattr(a, name), getattr(b, name))
                                 for name in ("places", "scales", "angles", "descriptors", "thumbnail"))
        for a, b in ((one[row], other[row]) for row in range(len(one))))


def counted(pictures):
    calls = []
    return calls, [lambda i=i, p=p: calls.append(i) or p for i, p in enumerate(pictures)]


def test_a_folder_holds_what_memory_holds(tmp_path):
    memory = FeatureMemory().keep(keys(8), openers(PICTURES))
    stored = FeatureStore(tmp_path / "f").keep(keys(8), openers(PICTURES))
    assert same(memory, stored)
    fresh = local_features(PICTURES[5])
    assert np.array_equal(stored[5].descriptors, fresh.descriptors)
    assert np.array_equal(stored[5].places, fresh.places)
    assert stored[5].size == fresh.size


@pytest.mark.parametrize("store", [lambda folder: FeatureMemory(), FeatureStore])
def test_pictures_of_the_same_bytes_are_opened_once(store, tmp_path):
    calls, opening = counted([PICTURES[0], PICTURES[1], PICTURES[0]])
    ticks = []
    kept = store(tmp_path / "f").keep([keys(2)[0], keys(2)[1], keys(2)[0]], opening, lambda: ticks.append(1))
    assert (calls, len(ticks), len(kept)) == ([0, 1], 3, 3)
    assert np.array_equal(kept[0].descriptors, kept[2].descriptors)


def test_only_what_is_new_is_extracted(tmp_path):
    calls, opening = counted(PICTURES)
    FeatureStore(tmp_path / "f").keep(keys(8)[:5], opening[:5])
    ticks = []
    whole = FeatureStore(tmp_path / "f").keep(keys(8), opening, lambda: ticks.append(1))
    again = FeatureStore(tmp_path / "f").keep(keys(8)[::-1], opening[::-1])
    assert (calls, len(ticks)) == (list(range(8)), 8)
    assert same(again, FeatureMemory().keep(keys(8)[::-1], openers(PICTURES[::-1])))
    assert same(whole, FeatureMemory().keep(keys(8), openers(PICTURES)))


@pytest.mark.parametrize("torn", [*feature_store.WIDTHS, "pictures.bin"])
def test_pictures_that_were_cut_short_are_extracted_again(tmp_path, torn):
    FeatureStore(tmp_path / "f").keep(keys(8), openers(PICTURES))
    file = tmp_path / "f" / torn
    os.truncate(file, file.stat().st_size * 3 // 4 - 5)
    calls, opening = counted(PICTURES)
    kept = FeatureStore(tmp_path / "f").keep(keys(8), opening)
    assert 2 <= len(calls) < 8
    assert same(kept, FeatureMemory().keep(keys(8), openers(PICTURES)))


def test_a_kill_inside_the_extraction_loses_only_a_part(tmp_path):
    """The process ends at its sixth picture, without a word, after parts of two."""
    code = f"""import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]
from drawings import drawing, keys
from rotescope.datasets.geometry import feature_store
feature_store.CHUNK = 2
made = [lambda i=i: os._exit(9) if i == 5 else drawing(i, size=(96, 64 + 8 * i), n=30) for i in range(8)]
feature_store.FeatureStore(sys.argv[1]).keep(keys(8), made)"""
    command = [sys.executable, "-c", code, str(tmp_path / "f")]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert killed.returncode == 9, killed.stderr
    calls, opening = counted(PICTURES)
    kept = FeatureStore(tmp_path / "f").keep(keys(8), opening)
    assert calls == [4, 5, 6, 7]
    assert same(kept, FeatureMemory().keep(keys(8), openers(PICTURES)))


def test_two_runs_do_not_add_at_once(tmp_path):
    store = FeatureStore(tmp_path / "f")
    with store._growing(), pytest.raises(InputError, match="another run is adding"):
        FeatureStore(tmp_path / "f").keep(keys(1), openers(PICTURES[:1]))


def test_who_has_nothing_to_add_reads_while_another_run_adds(tmp_path):
    told, store = [], FeatureStore(tmp_path / "f")
    first = store.keep(keys(2), openers(PICTURES[:2]))
    with store._growing():
        again = FeatureStore(tmp_path / "f").keep(keys(2), openers(PICTURES[:2]), lambda: told.append(1))
    assert same(first, again)
    assert len(told) == 2


def test_another_folder_or_another_release_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("do not touch")
    with pytest.raises(InputError, match="holds no local features, and is not empty"):
        FeatureStore(tmp_path / "full")
    FeatureStore(tmp_path / "f")
    for text in ("[]", "{", '{"features": "ORB"}'):
        (tmp_path / "f/features.json").write_text(text)
        with pytest.raises(InputError, match="of another release"):
            FeatureStore(tmp_path / "f")


def test_a_folder_that_names_a_picture_twice_is_refused(tmp_path):
    FeatureStore(tmp_path / "f").keep(keys(2), openers(PICTURES[:2]))
    for name in (*feature_store.WIDTHS, "pictures.bin"):
        file = tmp_path / "f" / name
        file.write_bytes(file.read_bytes() * 2)
    with pytest.raises(InputError, match="names a picture twice"):
        FeatureStore(tmp_path / "f").keep(keys(2), openers(PICTURES[:2]))


# ----- votes

def test_words_are_read_again_where_the_pictures_are_the_same(tmp_path):
    kept = FeatureMemory().keep(keys(8), openers(PICTURES))
    near = FeatureVotes(kept).near_words(local_features(PICTURES[2], 40).descriptors)
    alone, first = FeatureVotes(kept).votes(near), FeatureVotes(kept, tmp_path / "words.u16").votes(near)
    assert np.array_equal(first, alone)
    again = FeatureVotes(kept, tmp_path / "words.u16")
    assert np.array_equal(again.votes(near), alone)
    fewer = FeatureMemory().keep(keys(5), openers(PICTURES[:5]))
    other = FeatureVotes(fewer, tmp_path / "words.u16")
    asked = other.near_words(local_features(PICTURES[2], 40).descriptors)
    assert np.array_equal(other.votes(asked), FeatureVotes(fewer).votes(asked))
    os.truncate(tmp_path / "words.u16", 99)
    assert np.array_equal(FeatureVotes(kept, tmp_path / "words.u16").votes(near), alone)


def test_votes_are_those_of_arithmetic_feature_by_feature():
    """The sums, written out: each feature's nearest word, √count · idf over the root of the length."""
    kept = FeatureMemory().keep(keys(8), openers(PICTURES))
    votes = FeatureVotes(kept)
    assert len(votes.words) == min(8192, kept.counts.sum())
    count = np.zeros((8, len(votes.words)))
    for row in range(8):
        for descriptor in kept.descriptors(row).astype(np.float64) / 512:
            count[row, np.argmax(votes.words @ descriptor)] += 1
    idf = np.log(9 / ((count > 0).sum(0) + 0.5)).clip(0)
    table = np.sqrt(count) * idf
    table /= np.sqrt(np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1))
    near = votes.near_words(local_features(PICTURES[2], 40).descriptors)
    asked = np.zeros(len(votes.words))
    for words in near.words:
        asked[words[:3]] += (1.0, 0.6, 0.4)
    assert np.allclose(votes.votes(near), table @ (np.sqrt(asked) * idf), rtol=1e-3)
    assert votes.votes(near).argmax() == 2


def test_a_quarter_of_a_collage_finds_its_picture():
    """The other three quarters show what no training picture holds."""
    kept = FeatureMemory().keep(keys(20), openers([drawing(i) for i in range(20)]))
    votes = FeatureVotes(kept)
    for row in (3, 17):
        collage = drawing(100 + row)
        collage.paste(drawing(row).resize((128, 128)), (128, 0))
        features = local_features(collage, 640)
        rows, agreement = votes.ranked(features, votes.near_words(features.descriptors))
        assert rows[agreement.argmax()] == row
        without, _ = votes.ranked(features, votes.near_words(features.descriptors), [row])
        assert row not in without
