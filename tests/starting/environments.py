"""A clean environment for the package, and a copy of the tree that can be built without touching the clone."""
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
print(json.dumps({"home": rotescope.__file__, "hub": hf_datasets.load_dataset.__module__,
                  "metrics": Path(find_spec("evaluate").origin).parts[-3:], "contract": find_spec("rotescope.mitigate.contract.mitigation").origin,
                  "caption": scene.caption, "size": scene.image.size, "heldout": len(load_source(HERE / "heldout.parquet"))}))
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
    return Path(shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT)))


def clean_environment(folder):
    """-> its Python. What Rotescope depends on comes from the test's own environment by a line in a .pth file. Packages that
    are installed there as links to a clone do not come along, since their .pth files are not read from such a line."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def installed(python, *what):
    """Install by pip, without a network and without dependencies."""
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", *what, env=bare())


def bare(**more):
    """The environment's variables without a path to the clone."""
    return {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "PYTHONDONTWRITEBYTECODE": "1", **more}
