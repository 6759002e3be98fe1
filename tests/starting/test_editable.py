"""`pip install --editable`: a clean environment, far from the clone, runs the files of the clone."""
import json
from pathlib import Path

import pytest
from environments import FIRST_SEEN, FIRST_STEP, bare, clean_environment, copied_tree, installed, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """-> a copy of the clone, and the Python of an environment in which it is installed as --editable."""
    folder = tmp_path_factory.mktemp("editable")
    source, python = copied_tree(folder / "clone"), clean_environment(folder / "venv")
    installed(python, "--editable", source)
    return source, python


def test_first_step_far_from_the_clone_reads_its_files(clone, tmp_path):
    source, python = clone
    seen = json.loads(run(python, "-c", FIRST_STEP, cwd=tmp_path, env=bare()))
    assert Path(seen.pop("home")) == source / "rotescope/__init__.py"
    assert Path(seen.pop("contract")).resolve() == source / "mitigate/contract/mitigation.py"
    assert seen == FIRST_SEEN


def test_a_file_added_to_the_clone_is_there_at_once(clone, tmp_path):
    source, python = clone
    (source / "evaluate/new_room").mkdir()
    (source / "evaluate/new_room/new_file.py").write_text("ANSWER = 42\n")
    code = "from rotescope.evaluate.new_room.new_file import ANSWER; print(ANSWER)"
    assert run(python, "-c", code, cwd=tmp_path, env=bare()) == "42\n"


@pytest.mark.parametrize("inside", [True, False], ids=["root", "elsewhere"])
def test_commands_and_scripts_answer(clone, tmp_path, inside):
    source, python = clone
    place = {"cwd": source if inside else tmp_path, "env": bare()}
    assert "rotescope COMMAND" in run(python.parent / "rotescope", "--help", **place)
    assert "rotescope COMMAND" in run(python, "-m", "rotescope.cli", **place)
    assert "usage: rotescope finetune" in run(python, source / "train/finetune.py", "--help", **place)
    assert "usage: rotescope generate" in run(python, source / "mitigate/generate.py", "--help", **place)
