"""What a user installs: a wheel that holds every file and serves far from any clone; the same from the sdist."""
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from environments import FIRST_SEEN, FIRST_STEP, bare, clean_environment, copied_tree, installed, run
from places import ROOT

LAYERS = ("datasets", "train", "mitigate", "evaluate")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """-> the sdist, the wheel that `build` makes from it, the wheel that pip makes from a copied clone."""
    folder = tmp_path_factory.mktemp("archives")
    source = copied_tree(folder / "source")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "built", source)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, source)
    return next(folder.glob("built/*.tar.gz")), next(folder.glob("built/*.whl")), next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(archives):
    return archives[2]


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """Python of a clean environment with the wheel."""
    python = clean_environment(tmp_path_factory.mktemp("clean") / "venv")
    installed(python, wheel)
    return python


@pytest.fixture
def elsewhere(tmp_path):
    return {"cwd": tmp_path, "env": bare()}


def shipped_files():
    """Each file that git knows in the four folders and in the package, by its path in the wheel."""
    known = [Path(name) for name in run("git", "ls-files", *LAYERS, "rotescope", cwd=ROOT).splitlines()]
    files = [file for file in known if (ROOT / file).exists() and not (ROOT / file).is_symlink()]
    return {f.as_posix() if f.parts[0] == "rotescope" else f"rotescope/{f.as_posix()}" for f in files}


def test_wheel_has_one_top_level_name_and_every_file(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert {n.split("/")[0] for n in names} == {"rotescope"}
    assert names == shipped_files()
    assert [n for n in names if n.endswith("__init__.py")] == ["rotescope/__init__.py"]


def test_a_wheel_made_from_the_sdist_is_the_wheel_made_from_the_tree(archives):
    sdist, from_sdist, wheel = archives
    with tarfile.open(sdist) as archive:
        assert f"{sdist.name.removesuffix('.tar.gz')}/pyproject.toml" in archive.getnames()
    one, other = ({i.filename: i.CRC for i in zipfile.ZipFile(file).infolist() if "RECORD" not in i.filename}
                  for file in (from_sdist, wheel))
    assert one == other


def test_wheel_states_its_licences(wheel):
    archive = zipfile.ZipFile(wheel)
    names = [n for n in archive.namelist() if "/licenses/" in n]
    texts = {n.rsplit("/licenses/")[1]: archive.read(n).decode() for n in names}
    assert "Apache License" in texts["LICENSE"]
    assert "Noto Emoji" in texts["NOTICE"]
    assert "SIL OPEN FONT LICENSE" in texts["datasets/emoji/LICENSE"]


def test_installed_wheel_takes_the_first_step_far_from_the_clone(python, elsewhere):
    seen = json.loads(run(python, "-c", FIRST_STEP, **elsewhere))
    home = Path(seen.pop("home")).parent
    assert home.is_relative_to(python.parent.parent)
    assert Path(seen.pop("contract")) == home / "mitigate/contract/mitigation.py"
    assert seen == FIRST_SEEN


@pytest.mark.parametrize("name", ["console script", "-m", "accelerate launch"])
def test_installed_command_answers_far_from_the_clone(name, python, elsewhere):
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m")
    command = {"console script": (python.parent / "rotescope", "finetune"),
               "-m": (python, "-m", "rotescope.cli", "finetune"),
               "accelerate launch": (python, *launch, "rotescope.train.finetune")}[name]
    assert "usage: rotescope finetune" in run(*command, "--help", **elsewhere)
