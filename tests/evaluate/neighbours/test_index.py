"""The index: search against brute force, descriptors on disk through kills, growth, shards and strangers."""
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from instruments import noise, samples_folder, saved, training_folder, training_set
from PIL import Image

from rotescope.common.errors import InputError
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.descriptors.descriptor import pixels
from rotescope.evaluate.measurement.findings import score_samples
from rotescope.evaluate.neighbours import int8_prefilter as coarse
from rotescope.evaluate.neighbours.descriptor_store import MappedRows, Store, merge, read_about
from rotescope.evaluate.neighbours.index import build_index
from rotescope.evaluate.neighbours.nearest import approximate, nearest, nearest_other


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("data") / "train")


def unit(rng, n, d=16):
    x = rng.normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def counted():
    """-> the descriptor pixels, and the list of how many images each of its calls got."""
    calls, describe = [], pixels()

    def raw(images):
        calls.append(len(images))
        return describe.raw(images)
    return replace(describe, raw=raw), calls


# ----- search

@pytest.mark.parametrize("block", [(1, 1), (7, 3), (64, 16), (1024, 4096)])
@pytest.mark.parametrize("k", [1, 5])
def test_search_is_brute_force(block, k):
    rng = np.random.default_rng(0)
    query, reference = unit(rng, 50), unit(rng, 111)
    similarity, row = nearest(query, reference, k, block=block)
    every = query.astype(np.float64) @ reference.astype(np.float64).T
    assert np.array_equal(row, np.argsort(-every, axis=1)[:, :k])
    assert np.allclose(similarity, np.take_along_axis(every, row, 1), atol=1e-6)


@pytest.mark.parametrize("spread", [3.0, 0.3, 0.003, 0.0])  # of vectors around one direction: few, some, or all are candidates
@pytest.mark.parametrize("itself", [True, False])
def test_many_queries_find_what_brute_force_finds(spread, itself):
    rng = np.random.default_rng(0)
    x = 1 + spread * rng.normal(size=(1300, 100)).astype(np.float32)
    x[7], x[900], x[13], x[5] = x[1100], 0, -x[12], 0  # as nothing to compare is: it may choose any row but its own
    x *= rng.uniform(0.9, 1, (1300, 1)).astype(np.float32) / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
    own = np.where(rng.random(700) < 0.8, np.arange(700), -1) if itself else None
    similarity, row = nearest(x[:700], x, own=own, block=(256, 170))
    every = x[:700].astype(np.float64) @ x.T
    every[np.arange(700), np.arange(700)] -= 9 * (own >= 0) if itself else 0
    assert np.allclose(similarity[:, 0], every.max(1), atol=1e-6)
    assert np.allclose(every[np.arange(700), row[:, 0]], every.max(1), atol=1e-6)
    assert coarse.LEAST <= 700


@pytest.mark.parametrize("block", [(1, 1), (4, 2), (100, 100)])
def test_nearest_other_skips_the_own_row_only(block):
    x = np.eye(6, dtype=np.float32)
    x[4] = x[1]  # the same descriptor in another row counts
    rows, similarity, near = nearest_other(x, block=block)
    assert (rows.tolist(), similarity.tolist()) == ([0, 1, 2, 3, 4, 5], [0, 1, 0, 0, 1, 0])
    assert (near[1], near[4]) == (4, 1)
    assert nearest(x, x, block=block)[1][:, 0].tolist() == [0, 1, 2, 3, 1, 5]  # the first of equals
    assert [len(found) for found in nearest_other(x[:1])] == [0, 0, 0]


def test_more_pictures_than_are_compared_are_sampled_evenly():
    x = unit(np.random.default_rng(0), 300)
    (rows, some, near), (_, every, every_near) = nearest_other(x, at_most=30), nearest_other(x)
    assert len(rows) == 30
    assert np.allclose(some, every[rows], atol=1e-6)
    assert np.array_equal(near, every_near[rows])


def test_the_search_takes_half_precision_from_disk(tmp_path):
    rng = np.random.default_rng(0)
    query, reference = unit(rng, 20), unit(rng, 500)
    reference.astype(np.float16).tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float16, "r", shape=(500, 16))
    order = rng.permutation(500)
    for rows in (np.arange(500), order):
        similarity, row = nearest(query, MappedRows(mapped, rows), block=(8, 64))
        expected = nearest(query, mapped[rows].astype(np.float32))
        assert np.array_equal(row, expected[1])
        assert np.allclose(similarity, expected[0], atol=1e-6)


def test_faiss_finds_what_exact_search_finds_and_says_how_often():
    rng = np.random.default_rng(0)
    reference = unit(rng, 2000, 8)
    query = reference[:300] + rng.normal(size=(300, 8)).astype(np.float32) * 0.02
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    similarity, row, said = approximate(query, reference)
    exact_similarity, exact_row = nearest(query, reference)
    agree = (row == exact_row)[:, 0]
    assert agree.mean() > 0.9
    assert np.allclose(similarity[agree], exact_similarity[agree], atol=1e-6)  # its similarities are the true ones
    assert f"recall at 1 is {agree[np.linspace(0, 299, 200).astype(int)].mean():.3f}" in said


# ----- on disk

def test_an_index_on_disk_is_the_one_in_memory_but_for_half_precision(data, tmp_path):
    twin = replace(data[0], image_id=data[0].image_id + "-2", copies=5)
    index = build_index(Manifest((replace(data[0], copies=3), *data.examples[1:], twin)), pixels(), folder=tmp_path / "i")
    assert (len(index), index.copies[0], index.rows[twin.image_id]) == (40, 8, 0)
    assert np.allclose(index.vectors[:], build_index(data, pixels()).vectors, atol=1e-3)
    kept = {p.name for p in (tmp_path / "i").iterdir() if not p.name.startswith(".")}
    assert kept == {"index.json", "vectors.f16", "keys.bin", "queries"}


def test_only_what_is_new_is_embedded(data, tmp_path):
    describe, calls = counted()
    build_index(Manifest(data.examples[:25]), describe, folder=tmp_path / "i")
    whole = build_index(data, describe, folder=tmp_path / "i")
    again = build_index(Manifest(data.examples[::-1]), describe, folder=tmp_path / "i")
    assert calls == [25, 15]
    assert np.array_equal(again.vectors[:], whole.vectors[:][::-1])


@pytest.mark.parametrize("torn", ["vectors.f16", "keys.bin"])
def test_rows_that_were_cut_short_are_embedded_again(data, tmp_path, torn):
    describe, calls = counted()
    whole = build_index(data, describe, folder=tmp_path / "i").vectors[:]
    file = tmp_path / "i" / torn
    os.truncate(file, file.stat().st_size * 3 // 4 - 5)
    assert np.array_equal(build_index(data, describe, folder=tmp_path / "i").vectors[:], whole)
    assert calls == [40, 11]


def test_an_index_of_another_descriptor_or_no_index_is_refused(data, tmp_path):
    build_index(data, pixels(), folder=tmp_path / "i")
    with pytest.raises(InputError, match="holds descriptors by pixels-32-centred-fp32, not other"):
        build_index(data, replace(pixels(), name="other"), folder=tmp_path / "i")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("do not touch")
    with pytest.raises(InputError, match="is no index, and not empty"):
        Store(tmp_path / "full", "pixels", 4)
    with pytest.raises(InputError, match="is no index"):
        merge([tmp_path / "nowhere"], tmp_path / "m")


@pytest.mark.parametrize("text", ["[]", "{}", '"pixels"', "{"])
def test_an_index_that_says_nothing_of_itself_is_refused(data, tmp_path, text):
    build_index(data, pixels(), folder=tmp_path / "i")
    (tmp_path / "i/index.json").write_text(text)
    with pytest.raises(InputError, match="is no index"):
        build_index(data, pixels(), folder=tmp_path / "i")
    with pytest.raises(InputError, match="is no index"):
        merge([tmp_path / "i"], tmp_path / "m")


def test_rows_that_a_disk_lost_are_embedded_again_in_their_place(data, tmp_path):
    describe, calls = counted()
    whole, ticks = build_index(data, describe, folder=tmp_path / "i").vectors[:], []
    file = tmp_path / "i/vectors.f16"
    stored = np.memmap(file, np.float16, "r+", shape=whole.shape)
    stored[:5], stored[5, :1000], stored[7, 3] = 0, 0, np.nan  # five rows, a part of one, and a number
    stored.flush()
    size = file.stat().st_size
    again = build_index(data, describe, lambda: ticks.append(1), tmp_path / "i")
    assert np.array_equal(again.vectors[:], whole)
    assert (calls, len(ticks), file.stat().st_size) == ([40, 7], 40, size)
    build_index(data, describe, folder=tmp_path / "i")
    assert calls == [40, 7]


def test_pictures_without_a_descriptor_stay_so_and_the_index_does_not_grow(tmp_path):
    flat = saved(tmp_path / "train", [noise(0), Image.new("RGB", (64, 64), "red"), noise(1)])
    built = [build_index(load_source(flat, need_captions=False), pixels(), folder=tmp_path / "i") for _ in range(2)]
    assert [np.linalg.norm(index.vectors[:], axis=1).round(3).tolist() for index in built] == [[1, 0, 1]] * 2
    assert (tmp_path / "i/keys.bin").stat().st_size == 3 * 32


def test_an_index_that_names_a_picture_twice_is_refused(data, tmp_path):
    build_index(data, pixels(), folder=tmp_path / "i")
    keys = tmp_path / "i/keys.bin"
    keys.write_bytes(bytes(64) + keys.read_bytes()[64:])
    with pytest.raises(InputError, match="names a picture twice"):
        build_index(data, pixels(), folder=tmp_path / "i")


def test_shards_merge_into_the_whole(data, tmp_path):
    shards = [tmp_path / f"shard-{i}" for i in range(3)]
    for i, shard in enumerate(shards):
        build_index(Manifest(data.examples[i::3]), pixels(), folder=shard)
    merged, describe = merge(shards, tmp_path / "m"), counted()
    assert len(merged) == 40
    assert merge(shards[1:], tmp_path / "m").row_of == merged.row_of  # once more changes nothing
    whole = build_index(data, describe[0], folder=tmp_path / "m")
    assert describe[1] == []  # nothing was left to embed
    assert np.array_equal(whole.vectors[:], build_index(data, pixels(), folder=tmp_path / "w").vectors[:])
    other = Store(tmp_path / "other", "something else", 4)
    with pytest.raises(InputError, match="holds descriptors by something else"):
        merge([*shards, other.folder], tmp_path / "n")


def figures(report):
    told = ("verdict", "copy_threshold", "background", "methods", "pairs", "prompts", "histogram")
    return {key: getattr(report, key) for key in told}


def test_a_score_from_an_index_is_the_score_in_memory_but_for_half_precision(data, tmp_path):
    folder = samples_folder(tmp_path / "s", data, lambda method, i, seed: i < 7, seeds=(0,))
    memory, disk = (score_samples(folder, data, verify=False, index_dir=where) for where in (None, str(tmp_path / "i")))
    assert disk["none"]["ungrouped"].copies == 7
    assert disk.copy_threshold == pytest.approx(memory.copy_threshold, abs=1e-3)
    assert figures(score_samples(folder, data, verify=False, index_dir=str(tmp_path / "i"))) == figures(disk)


@pytest.mark.slow
def test_two_processes_embed_what_one_would(tmp_path):
    train = training_folder(tmp_path / "train", 101)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command = ["rotescope.evaluate.index_images", "--train_data", train, "--index_dir"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}

    def run(*argv):
        done = subprocess.run(list(map(str, argv)), env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(run(*launch, *command, tmp_path / "two")) == 1  # the main process alone says what was done
    run(sys.executable, "-m", *command, tmp_path / "one")
    training_folder(tmp_path / "more", 120)
    for file in (tmp_path / "more").iterdir():
        file.replace(train / file.name)
    assert '"pictures": 120' in run(*launch, *command, tmp_path / "two")[0]  # it grew
    run(sys.executable, "-m", *command, tmp_path / "one")
    stores = [Store(tmp_path / name, *map(read_about(tmp_path / name).get, ("descriptor", "dim"))) for name in ("one", "two")]
    assert {p.name for p in tmp_path.iterdir()} == {"train", "more", "one", "two"}  # no part is left
    assert stores[0].row_of.keys() == stores[1].row_of.keys()
    for key, row in stores[0].row_of.items():
        assert np.array_equal(stores[0].vectors[row], stores[1].vectors[stores[1].row_of[key]])


SLOWLY = """
import sys, time
from rotescope.evaluate import score
from rotescope.evaluate.descriptors import descriptor
plain = descriptor.centred_pixels
def slowly(images, side=32):
    time.sleep(0.2)
    return plain(images, side)
descriptor.centred_pixels = slowly
score.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_score_goes_on_and_reports_the_same(tmp_path):
    train = training_folder(tmp_path / "train", 400)
    folder = samples_folder(tmp_path / "s", training_set(tmp_path / "t2", 60), lambda method, i, seed: i % 3 == 0)
    argv = ["--generated", folder, "--train_data", train, "--index_dir", tmp_path / "i", "--output_dir", tmp_path / "out"]
    run = subprocess.Popen([sys.executable, "-c", SLOWLY, *map(str, argv)], stderr=subprocess.DEVNULL)
    keys = tmp_path / "i/keys.bin"
    while not (keys.exists() and keys.stat().st_size >= 64 * 32):
        assert run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert 64 <= keys.stat().st_size // 32 < 400
    resumed = score_samples(folder, load_source(train), index_dir=str(tmp_path / "i"))
    assert figures(resumed) == figures(score_samples(folder, load_source(train), index_dir=str(tmp_path / "fresh")))
