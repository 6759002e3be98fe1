"""An index gives what scoring without one gives: for parts of it, more than it, other orders, after kills, for two at once."""
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from instruments import samples_folder, training_set
from places import ROOT

from rotescope.datasets.manifest import Manifest
from rotescope.evaluate.descriptors.descriptor import pixels
from rotescope.evaluate.measurement.findings import score_samples
from rotescope.evaluate.neighbours.descriptor_store import MappedRows, Store
from rotescope.evaluate.neighbours.index import build_index

HERE = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
SLOWLY = """
import sys, time
from dataclasses import replace
from rotescope.datasets.manifest import Manifest
from rotescope.evaluate.descriptors.descriptor import pixels
from rotescope.evaluate.neighbours.index import build_index
plain, seconds = pixels(), float(sys.argv[3])
def raw(images):
    print("in", flush=True)
    time.sleep(seconds)
    return plain.raw(images)
index = build_index(Manifest.load(sys.argv[1]), replace(plain, raw=raw), folder=sys.argv[2])
print(len(index), flush=True)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("data") / "train", 90)


@pytest.fixture(scope="module")
def samples(data, tmp_path_factory):
    """Copies of the first five training pictures, and noise."""
    return samples_folder(tmp_path_factory.mktemp("samples"), data[:10], lambda method, i, seed: i < 5, seeds=(0,))


def part(data, *rows):
    return Manifest(tuple(data[i] for i in rows))


def slowly(manifest, folder, seconds):
    return subprocess.Popen([sys.executable, "-c", SLOWLY, str(manifest), str(folder), str(seconds)], env=HERE, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def figures(report):
    found = report["none"]["ungrouped"]
    return {"copies": found.copies, "nearest": sorted((p.image, p.nearest) for p in report.pairs if p.is_copy),
            "similarities": np.array([p.similarity for p in sorted(report.pairs, key=lambda p: p.image)]),
            "threshold": report.copy_threshold}


# ----- rows of a memory map

def test_a_view_ends_where_its_rows_end():
    """Every subset, order and repetition of rows against numpy's own: the same values, the same refusals."""
    array, rng = np.arange(20, dtype=np.float16).reshape(10, 2), np.random.default_rng(0)
    for rows in ([], [0], [0, 1, 2], list(range(10)), [3, 4], [2, 1, 0], [5, 5, 0],
                 *(rng.integers(0, 10, n) for n in range(1, 9))):
        plain, view = array[np.asarray(rows, int)].astype(np.float32), MappedRows(array, rows)
        assert view.shape == plain.shape
        for at in (slice(None), slice(0, 100), slice(2, 5), slice(-2, None), slice(None, None, -1), slice(8, 9), -1, 0, 2, 9, -10,
                   np.array([0, 0]), np.array([-1]), np.array([3, 8]), np.array([], int), np.ones(len(rows), bool),
                   np.ones(10, bool)):
            if isinstance(at, np.ndarray | int) and _refused(plain, at):
                with pytest.raises(IndexError):
                    view[at]
            else:
                assert np.array_equal(view[at], plain[at])


def _refused(array, at):
    try:
        array[at]
        return False
    except IndexError:
        return True


# ----- scores

ORDERS = {"all": range(90), "the first": range(40), "the last": range(30, 90), "backwards": range(89, -1, -1),
          "twice": [*range(20), *range(20)], "mixed": np.random.default_rng(0).permutation(90)[:50], "two": range(2)}


@pytest.fixture(scope="module")
def without(data, samples):
    """The figures of each order without an index."""
    return {name: figures(score_samples(samples, part(data, *rows), verify=False)) for name, rows in ORDERS.items()}


@pytest.mark.parametrize("first", ["all", "the last", "two"])
def test_a_score_with_an_index_is_the_score_without(first, data, samples, without, tmp_path):
    """One folder serves all of these in turn: it is a superset, a subset, or has grown."""
    folder = tmp_path / "i"
    build_index(part(data, *ORDERS[first]), pixels(), folder=folder)
    for name, rows in ORDERS.items():
        disk, memory = figures(score_samples(samples, part(data, *rows), verify=False, index_dir=str(folder))), without[name]
        assert disk["copies"] == memory["copies"], name
        assert disk["nearest"] == memory["nearest"], name
        assert np.allclose(disk["similarities"], memory["similarities"], atol=2e-3), name
        assert disk["threshold"] == pytest.approx(memory["threshold"], abs=2e-3)
    assert len(Store(folder, pixels().name, pixels().dim)) == 90


def test_a_score_that_verifies_uses_a_part_of_an_index(data, tmp_path):
    build_index(data, pixels(), folder=tmp_path / "i")
    samples = samples_folder(tmp_path / "s", data[:4], lambda method, i, seed: i < 2, seeds=(0,))
    some = part(data, *range(12))
    memory, disk = (figures(score_samples(samples, some, index_dir=folder)) for folder in (None, str(tmp_path / "i")))
    assert (disk["copies"], disk["nearest"]) == (memory["copies"], memory["nearest"])


# ----- kills and company

def test_a_kill_inside_the_embedding_costs_what_was_not_safe_yet(data, samples, without, tmp_path):
    data.save(tmp_path / "m.parquet")
    run = slowly(tmp_path / "m.parquet", tmp_path / "i", 60)
    assert run.stdout.readline() == "in\n"
    run.send_signal(signal.SIGKILL)
    run.communicate()
    with open(tmp_path / "i/vectors.f16", "ab") as torn:  # and a row that was cut short
        torn.write(b"\1" * 77)
    disk = figures(score_samples(samples, data, verify=False, index_dir=str(tmp_path / "i")))
    assert disk["nearest"] == without["all"]["nearest"]
    assert len(Store(tmp_path / "i", pixels().name, pixels().dim)) == 90


def test_readers_wait_for_nobody(data, tmp_path):
    """Two readers, and one beside a run that is adding: none of them takes the lock."""
    known = part(data, *range(50))
    build_index(known, pixels(), folder=tmp_path / "i")
    data.save(tmp_path / "m.parquet")
    writer = slowly(tmp_path / "m.parquet", tmp_path / "i", 60)
    assert writer.stdout.readline() == "in\n"
    try:
        never = replace(pixels(), raw=lambda images: pytest.fail("embedded again"))
        for manifest in (known, part(data, 3, 2), known):
            index = build_index(manifest, never, folder=tmp_path / "i")
            assert np.allclose(index.vectors[:], build_index(manifest, pixels()).vectors, atol=2e-3)
    finally:
        writer.kill()
        writer.communicate()


def test_a_second_writer_waits_and_adds_only_what_is_new_then(data, tmp_path, capsys):
    store, done = Store(tmp_path / "i", pixels().name, pixels().dim), []
    with store._growing():
        waiting = threading.Thread(target=lambda: done.append(build_index(data, pixels(), folder=tmp_path / "i")))
        waiting.start()
        time.sleep(0.5)
        assert not done
    waiting.join(30)
    assert len(done[0]) == 90
    assert f"another run is adding to the index {tmp_path}/i: this one waits for it" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_that_start_at_once_on_a_new_index_leave_a_whole_one(data, tmp_path):
    """The same data and other data, in one folder: each picture stands there once, with its own vector."""
    for name, rows in (("a", range(60)), ("b", range(60)), ("c", range(89, 29, -1))):
        part(data, *rows).save(tmp_path / f"{name}.parquet")
    runs = [slowly(tmp_path / f"{name}.parquet", tmp_path / "i", 0.1) for name in "abc"]
    ended = [(run.communicate(timeout=60)[0].splitlines()[-1], run.returncode) for run in runs]
    assert ended == [("60", 0)] * 3
    found = build_index(data, replace(pixels(), raw=lambda images: pytest.fail("embedded again")), folder=tmp_path / "i")
    assert np.allclose(found.vectors[:], build_index(data, pixels()).vectors, atol=2e-3)
    assert {p.name for p in (tmp_path / "i").iterdir()} == {"index.json", "vectors.f16", "keys.bin", ".lock", "queries"}
