"""What a user installs: one wheel that holds everything, whole, and usable far from any clone."""
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from places import ROOT

LAYERS = ("datasets", "train", "mitigate", "evaluate")
FIRST_STEP = """
import json, sys
import datasets as hf_datasets, numpy, rotescope
from places import ROOT
from rotescope.datasets.emoji.scenes import HERE, compose
from rotescope.datasets.readers.sources import load_source
scene = compose(("cat", "bus"), "blue", numpy.random.default_rng(0))
print(json.dumps({"home": rotescope.__file__, "hub": hf_datasets.load_dataset.__module__, "caption": scene.caption,
                  "size": scene.image.size, "heldout": len(load_source(HERE / "heldout.parquet"))}))
"""
pytestmark = pytest.mark.slow


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: the clone stays clean, and nothing stale gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns(".git", ".venv", "runs", "work", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder / "source", ignore=skip)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*build, "--wheel-dir", folder, folder / "source")
    return next(folder.glob("rotescope-*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The wheel as pip lays it out, apart from the clone; what it depends on comes from the test's own environment."""
    folder = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


@pytest.fixture
def elsewhere(site, tmp_path):
    """How to run Python with the wheel and without the clone, from a folder that is neither."""
    return {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}}


def test_wheel_has_one_top_level_name_and_every_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"rotescope"}
    wanted = {".py", ".parquet", ".png", ".yaml", ".safetensors", ".json", ".txt", ".csv", ".j2", ".md", ""}
    tracked = [p for folder in LAYERS for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix in wanted]
    assert not [str(p) for p in tracked if f"rotescope/{p.relative_to(ROOT).as_posix()}" not in names]
    assert not [n for n in names if n.endswith(".pyc") or n.startswith("rotescope/tests")]
    assert [n for n in names if n.endswith("__init__.py")] == ["rotescope/__init__.py"]


def test_wheel_states_its_licences(wheel):
    archive = zipfile.ZipFile(wheel)
    texts = {n.rsplit("/licenses/")[1]: archive.read(n).decode() for n in archive.namelist() if "/licenses/" in n}
    assert "Apache License" in texts["LICENSE"]
    assert "Noto Emoji" in texts["NOTICE"]
    assert "SIL OPEN FONT LICENSE" in texts["datasets/emoji/LICENSE"]


def test_installed_wheel_takes_the_first_step_far_from_the_clone(site, elsewhere):
    seen = json.loads(run(sys.executable, "-c", FIRST_STEP, **elsewhere))
    assert Path(seen.pop("home")) == site / "rotescope/__init__.py"
    assert seen == {"hub": "datasets.load", "caption": "a cat and a bus on a blue background", "size": [64, 64], "heldout": 800}


def test_installed_command_answers_far_from_the_clone(site, elsewhere):
    """`pip install --target` also writes the console script."""
    assert "rotescope COMMAND" in run(sys.executable, site / "bin/rotescope", "--help", **elsewhere)


def test_types_hold_on_the_wheel(site, tmp_path):
    pytest.importorskip("mypy")
    settings = ["--config-file", ROOT / "pyproject.toml", "--cache-dir", tmp_path / "cache"]
    run(sys.executable, "-m", "mypy", *settings, "-p", "rotescope", cwd=site)
