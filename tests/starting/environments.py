"""A clean environment for the package, and a copy of the tree, so that a build does not touch the clone."""
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from places import ROOT

LEFT_OUT = (".git", ".venv", "runs", "work", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
FIRST_STEP = """
import json, sys
import datasets as hf_datasets, numpy, rotescope
from importlib.util import find_spec
from pathlib import Path
from rotescope.datasets.emoji.scenes import HERE, compose
from rotescope.datasets.readers.sources import load_source
scene = compose(("cat", "bus"), "blue", numpy.random.default_rng(0))
print(json.dumps({
    "home": rotescope.__file__, "contract": find_spec("rotescope.mitigate.contract.mitigation").origin,
    "hub": hf_datasets.load_dataset.__module__, "metrics": Path(find_spec("evaluate").origin).parts[-3:],
    "caption": scene.caption, "size": scene.image.size,
    "heldout": len(load_source(HERE / "heldout.parquet"))}))
"""
FIRST_SEEN = {"hub": "datasets.load", "metrics": ["site-packages", "evaluate", "__init__.py"],
              "caption": "a cat and a bus on a blue background", "size": [64, 64], "heldout": 800}


def run(*command, **options):
    """-> what the command printed; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copied_tree(folder):
    """The tree as a clone has it: links stay links, and nothing that was built comes along."""
    ignored = shutil.ignore_patterns(*LEFT_OUT)
    return Path(shutil.copytree(ROOT, folder, symlinks=True, ignore=ignored))


def clean_environment(folder):
    """-> its Python. What Rotescope depends on comes from the test's own environment, by a .pth file.

    A package that is installed there as a link to a clone does not come along: its own .pth file is not read.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def installed(python, *what):
    """Install by pip, without a network and without dependencies."""
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run(python, "-m", "pip", "install", *options, *what, env=bare())


def bare():
    """The environment's variables without a path to the clone."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1"}
