"""`score` on 2,000 × 10,000 images: killed again and again, it goes on where it was, and says what an undisturbed run says."""
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from places import ROOT

from rotescope.evaluate.neighbours.descriptor_store import read_about

TRAINING, GENERATED, COPIED = 10_000, 2_000, 25
PATIENCE = 600  # seconds


def noise(folder, n, seed):
    """n PNGs of 8 × 8 random pixels."""
    folder.mkdir()
    for i, pixels in enumerate(np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i:05d}.png", compress_level=1)
    return folder


def command(train, generated, index, out):
    return [sys.executable, "-m", "rotescope.cli", "score", "--generated", str(generated), "--train_data", str(train),
            "--index_dir", str(index), "--output_dir", str(out), "--descriptor", "pixels", "--alignment", "none",
            "--verify", "false", "--overwrite"]


def rows_in(store):
    """How many descriptors a store that may be growing holds."""
    file = store / "keys.bin"
    return file.stat().st_size // 32 if file.exists() else 0


def run_until(argv, enough):
    """Start a command and kill it by SIGKILL as soon as enough() -> True, or False if it ended before."""
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    limit = time.monotonic() + PATIENCE
    try:
        while process.poll() is None and time.monotonic() < limit:
            if enough():
                process.send_signal(signal.SIGKILL)
                process.wait()
                return True
            time.sleep(0.002)
        assert process.poll() is not None, "neither far enough nor done in time"
        return False
    finally:
        process.kill()
        process.wait()


def report_of(out):
    """Without what may differ: when it was made, and under which names the folders were given."""
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report.pop("created")
    for name in ("index_dir", "output_dir"):
        report["config"]["scoring"].pop(name)
    return report


@pytest.mark.slow
def test_score_of_2000_by_10000_images_killed_and_gone_on_with(tmp_path):
    train, generated = noise(tmp_path / "train", TRAINING, 0), noise(tmp_path / "generated", GENERATED, 1)
    for i in range(COPIED):
        (generated / f"{i:05d}.png").write_bytes((train / f"{400 * i:05d}.png").read_bytes())
    index, out = tmp_path / "index", tmp_path / "out"
    argv, before = command(train, generated, index, out), 0
    for store, share in ((index, 0.02), (index, 0.4), (index, 0.99), (index / "queries", 0.1), (index / "queries", 0.7)):
        wanted = int(share * (GENERATED if store.name == "queries" else TRAINING))
        assert run_until(argv, lambda store=store, wanted=wanted: rows_in(store) >= wanted), "it ended before it was killed"
        assert not out.exists()
        assert rows_in(index) >= before  # what was embedded stays
        before = rows_in(index)
    assert not run_until(argv, lambda: False)
    assert not run_until(command(train, generated, tmp_path / "fresh", tmp_path / "whole"), lambda: False)
    report = report_of(out)
    assert report == report_of(tmp_path / "whole")
    assert (report["training_images"]["unique"], len(report["pairs"])) == (TRAINING, GENERATED)
    assert sum(p["is_copy"] and p["similarity"] > 0.99 for p in report["pairs"]) == COPIED
    assert [read_about(folder)["descriptor"] for folder in (index, tmp_path / "fresh")] == ["pixels-32-centred-fp32"] * 2
    assert rows_in(index) == TRAINING
    assert rows_in(index / "queries") == GENERATED
