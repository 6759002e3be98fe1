"""The GitHub Action's script, run as GitHub runs it, with the outcome that a release hangs on."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def action():
    return yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


def test_every_input_reaches_the_script_and_none_is_written_into_it(action):
    step = action["runs"]["steps"][-1]
    assert {f"${{{{ inputs.{name} }}}}" for name in action["inputs"]} == set(step["env"].values())
    assert "${{" not in step["run"]
    for name in step["env"]:
        assert f"${name}" in step["run"]


def run_script(action, folder, **given):
    """-> exit code, what it puts out for later steps, the job's summary, what it says."""
    step = action["runs"]["steps"][-1]
    defaults = {name.upper(): about.get("default", "") for name, about in action["inputs"].items()}
    files = {name: str(folder / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for file in files.values():
        Path(file).write_text("")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]], cwd=folder, text=True,
                         capture_output=True, env={**os.environ, **defaults, **files, "PATH": path, **given})
    return ran.returncode, *(Path(f).read_text() for f in files.values()), ran.stdout + ran.stderr


@pytest.mark.slow
def test_the_outcome_decides(action, tmp_path):
    tiny.saved_pipeline(tmp_path / "my model")
    photos = tiny.image_folder(tmp_path / "photos", 4, side=32)
    given = {"MODEL": "my model", "TRAIN_DATA": str(photos),
             "OPTIONS": "--seeds 0 --num_inference_steps 1 --device cpu --overwrite --max_prompts 2"}
    code, output, summary, _ = run_script(action, tmp_path, **given)
    assert (code, output) == (4, "outcome=undecided\n")
    assert summary.lstrip().startswith("## Memorization")
    assert (tmp_path / "audit/to_share/badge.svg").read_text().startswith("<svg")
    code, output, _, said = run_script(action, tmp_path, **given, UNDECIDED="warn")
    assert (code, output) == (0, "outcome=undecided\n")
    assert "::warning::" in said
    code, output, _, _ = run_script(action, tmp_path, **given | {"OPTIONS": given["OPTIONS"] + " --copy_threshold -1",
                                                                 "FAIL_ON": "copies>0"})
    assert (code, output) == (1, "outcome=failed\n")
    code, output, _, said = run_script(action, tmp_path, **given | {"MODEL": "$(touch owned) no model"})
    assert (code, output) == (2, "")
    assert not (tmp_path / "owned").exists()
