"""Every way of starting finds the four folders of this tree, and Hugging Face's packages by their bare names.

Each way runs as a process of its own. A module that Python loads at every start writes down, when the process
ends, what the names mean on the path that this way of starting has laid out.
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

NOTE_AT_EXIT = """
import atexit, json, os
from importlib.util import find_spec
from pathlib import Path

NAMES = ("datasets", "evaluate", "rotescope.mitigate.contract.mitigation")


def note():
    found = [find_spec(name).origin for name in NAMES]
    Path(os.environ["NOTES"], f"{os.getpid()}.json").write_text(json.dumps(found))


atexit.register(note)
"""
PYTHON = sys.executable
SCRIPTS = Path(PYTHON).parent  # the console scripts of this environment
LAUNCH = (SCRIPTS / "accelerate", "launch", "--cpu", "--num_processes", "1", "--num_machines", "1",
          "--mixed_precision", "no", "--dynamo_backend", "no")
FINETUNE, GENERATE = ROOT / "train/finetune.py", ROOT / "mitigate/generate.py"
ONE_FILE = ("--collect-only", "-q", "-p", "no:cacheprovider", ROOT / "tests/common/test_settings.py")
WAYS = {  # name -> command, and a word of what it must print
    "script": ((PYTHON, FINETUNE, "--help"), "usage: rotescope finetune"),
    "script of another layer": ((PYTHON, GENERATE, "--help"), "usage: rotescope generate"),
    "-m of the front door": ((PYTHON, "-m", "rotescope.cli", "--help"), "rotescope COMMAND"),
    "-m of a layer": ((PYTHON, "-m", "rotescope.train.finetune", "--help"), "usage: rotescope finetune"),
    "console script": ((SCRIPTS / "rotescope", "finetune", "--help"), "usage: rotescope finetune"),
    "accelerate launch": ((*LAUNCH, FINETUNE, "--help"), "usage: rotescope finetune"),
    "accelerate launch -m": (
        (*LAUNCH, "-m", "rotescope.train.finetune", "--help"), "usage: rotescope finetune"),
    "pytest": ((SCRIPTS / "pytest", *ONE_FILE), "test_settings.py"),
    "-m pytest": ((PYTHON, "-m", "pytest", *ONE_FILE), "test_settings.py"),
}


def started(command, cwd, folder):
    """Run a command -> what it printed, and for each of its processes where the three names lead."""
    (folder / "sitecustomize.py").write_text(NOTE_AT_EXIT, encoding="utf-8")
    (notes := folder / "notes").mkdir()
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "NOTES": str(notes), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, [json.loads(note.read_text()) for note in notes.glob("*.json")]


def each_way_from_each_place():
    """Of the ways that take seconds, `accelerate launch` runs by default, from the root; pytest itself runs there anyhow."""
    for way in WAYS:
        for place in ("root", "elsewhere"):
            seconds = "pytest" in way or "accelerate" in way
            again = place == "elsewhere" or way in ("pytest", "-m pytest", "accelerate launch -m")
            yield pytest.param(way, place, marks=pytest.mark.slow if seconds and again else ())


@pytest.mark.parametrize(("way", "place"), each_way_from_each_place())
def test_names_mean_what_they_say(way, place, tmp_path):
    command, word = WAYS[way]
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (folder := tmp_path / "probe").mkdir()
    printed, found = started(command, ROOT if place == "root" else elsewhere, folder)
    assert word in printed
    assert len(found) == (2 if "accelerate" in way else 1)  # the launcher, too
    for datasets, evaluate, contract in found:
        assert Path(datasets).parts[-3:] == ("site-packages", "datasets", "__init__.py")
        assert Path(evaluate).parts[-3:] == ("site-packages", "evaluate", "__init__.py")
        assert Path(contract).resolve() == ROOT / "mitigate/contract/mitigation.py"
