"""Where a run may write: apart from what it reads, alone, and past whatever a killed run left there."""
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from instruments import leave
from places import ROOT

from rotescope import cli
from rotescope.common.errors import InputError
from rotescope.common.outputs import check_apart, check_output, output_folder, put_in_place
from rotescope.common.processes import alone_in, check_alone
from rotescope.mitigate.sampling.resumable_folder import resumable_folder
from rotescope.models.model_options import BASE

HERE = {**os.environ, "PYTHONPATH": str(ROOT)}
ALONE = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
LIVES = ("import sys; from rotescope.common.processes import alone_in\n"
         "with alone_in(sys.argv[1]): print('in', flush=True); sys.stdin.read()")


@contextmanager
def living(folder):
    """A process that fills the folder for as long as we are within."""
    other = subprocess.Popen([sys.executable, "-c", LIVES, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             env=HERE)
    try:
        assert other.stdout.readline() == "in\n"
        yield other
    finally:
        other.kill()
        other.communicate()


# ----- apart

@pytest.mark.parametrize("argv", [
    f"audit --model {BASE} --train_data i", "audit --model i --train_data x",
    f"audit --model {BASE} --train_data x --heldout_data i", f"audit --model {BASE} --train_data x --base i",
    f"audit --model {BASE} --train_data i --index_dir i/x --output_dir o", f"audit --model {BASE} --train_data x --prompts i",
    "generate --prompts x --lora i", "generate --prompts x --model i",
    "generate --prompts x --mitigation og-recall:training=i", "detect --prompts x --train_data i",
    "detect --prompts x --heldout_data i", "retrigger --train_data x --heldout_data i", "retrigger --train_data i",
    "preflight i", "compare --checkpoint i", "compare --checkpoint x --heldout_data i", "figures --checkpoint i",
    "dose --train_data i", "finetune --train_data i", "finetune --train_data x --monitor_heldout i",
    "finetune --train_data i --output_dir o --cache_dir i/x", "score --generated i --train_data x",
    "score --generated x --train_data i", "score --generated x --train_data i --index_dir i/x --output_dir o",
    "score --generated x --train_data i --junit_xml i/x.xml --output_dir o", "score --generated x --train_data x --sweep i",
    "index --train_data i --index_dir i/index", "prepare --train_data i --output_file i/m.parquet",
    "prepare --train_data x --mix_data_dir i --mix_ratio 1 --output_file i/m.parquet",
    "calibrate --model i --prompts x --output_file i/known.json"])
def test_no_command_writes_into_what_it_reads(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rotescope.models.model_options.find_model", lambda name: name)
    monkeypatch.setattr("rotescope.models.model_options.find_model_path", lambda name, config: name)
    monkeypatch.setattr("rotescope.models.model_options.find_lora", lambda path: path)
    for folder in ("i", "x"):
        (tmp_path / folder).mkdir()
    placed = [] if "--output_" in argv or "--index_dir i/index" in argv else ["--output_dir", "i/out"]
    assert leave(cli.main, [*argv.split(), *placed]) == 2
    assert "i is read, and the output i/" in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "i").iterdir())


def test_links_lead_into_a_folder_too(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(InputError, match="lies in it"):
        check_output(tmp_path / "link/new/out", inputs=[tmp_path / "data"])
    check_output(tmp_path / "data-2/out", inputs=[tmp_path / "data"])


def test_a_name_that_is_no_place_forbids_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pixels").mkdir()
    check_apart("pixels/first", (), texts=["pixels"])  # the descriptor, not a folder that is read
    for text in ("og-recall:training=pixels", "og-recall:training=pixels,before=-1"):
        with pytest.raises(InputError, match="lies in it"):
            check_apart("pixels/first", (), texts=[text])


def test_every_file_that_a_setting_names_is_kept(tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o/known.json").touch()
    with pytest.raises(InputError, match="would replace it"):
        check_apart(tmp_path / "o", (), texts=[f"dtp-calibrated:calibration={tmp_path}/o/known.json,before=-1"])


# ----- alone

def test_the_second_of_two_live_runs_is_told_of_the_first(tmp_path):
    out = tmp_path / "new/out"
    with living(out) as other:
        for entered in (lambda: output_folder(out), lambda: resumable_folder(out, {}, ALONE), lambda: alone_in(out)):
            with pytest.raises(InputError, match=rf"alive in .*out \(process {other.pid} on \S+, since 20"), entered():
                pass
        with pytest.raises(InputError, match="alive"):
            check_output(out)
        with alone_in(tmp_path / "new/out-2"):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert (tmp_path / "new/.out.lock").exists()  # what is left of it holds nobody up
        check_alone(out)
        with output_folder(out) as draft:
            (draft / "a").touch()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]


@pytest.mark.parametrize("command", ["finetune", "generate", "demo", "preflight", "score"])
def test_commands_tell_it_before_anything_is_done(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat")
    (tmp_path / "data").mkdir()
    given = {"generate": ["--prompts", "prompts.txt"], "preflight": ["data"],
             "score": ["--generated", "data", "--train_data", "data"]}
    with living("out") as other:
        assert leave(cli.main, [command, *given.get(command, []), "--output_dir", "out", "--overwrite"]) == 2
    assert f"process {other.pid} on" in capsys.readouterr().err.splitlines()[-1]


def test_one_run_may_take_its_own_folder_again(tmp_path):
    with alone_in(tmp_path / "out"), alone_in(tmp_path / "out"), output_folder(tmp_path / "out") as draft:
        (draft / "a").touch()
        assert (tmp_path / ".out.lock").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_further_processes_of_a_run_wait_for_no_lock(tmp_path, monkeypatch):
    with living(tmp_path / "out"):
        monkeypatch.setenv("RANK", "1")
        with alone_in(tmp_path / "out"):
            check_alone(tmp_path / "out")


def test_runs_that_end_and_begin_by_turns_are_never_two_at_once(tmp_path):
    """Each removes the lock file as it ends, perhaps just after another one has opened it."""
    turn = ("import os, sys; from pathlib import Path; from rotescope.common.errors import InputError\n"
            "from rotescope.common.processes import alone_in\n"
            "out, n = Path(sys.argv[1]), 0\n"
            "while n < 200:\n"
            "    try:\n"
            "        with alone_in(out):\n"
            "            os.close(os.open(out.with_name('mark'), os.O_CREAT | os.O_EXCL))\n"
            "            os.unlink(out.with_name('mark')); n += 1\n"
            "    except InputError: pass\n")
    others = [subprocess.Popen([sys.executable, "-c", turn, str(tmp_path / "out")], env=HERE) for _ in range(2)]
    assert [other.wait(60) for other in others] == [0, 0]
    assert not list(tmp_path.iterdir())


# ----- after a kill

@pytest.mark.parametrize("left", [".out.old", ".out.0123abcd.old", ".out.0123abcd.part", ".out.part", ".out.lock"])
def test_what_a_killed_run_left_breaks_no_later_one(left, tmp_path):
    out = tmp_path / "out"
    for resumable in (False, True):
        if left.endswith("lock"):
            (tmp_path / left).write_text("process 1 on elsewhere, since 2020-01-01 00:00:00")
        else:
            (tmp_path / left).mkdir(exist_ok=True)
            (tmp_path / left / "file").touch()
        for number in range(2):
            with (resumable_folder(out, {}, ALONE, overwrite=True) if resumable
                  else output_folder(out, overwrite=True)) as draft:
                (draft / str(number)).touch()
            assert (out / str(number)).exists()
    rest = {p.name for p in tmp_path.iterdir()} - {"out"}
    assert rest == ({left} if left.endswith("part") else set())


def test_a_result_that_was_moved_away_goes_once_the_next_one_is_there(tmp_path):
    """Killed between the two renames: the older result is the only one until a run ends."""
    (tmp_path / ".out.0123abcd.old").mkdir()
    with pytest.raises(KeyError), output_folder(tmp_path / "out"):
        raise KeyError
    assert (tmp_path / ".out.0123abcd.old").exists()
    (tmp_path / ".out.v2.0123abcd.old").mkdir()  # of the output out.v2
    draft = tmp_path / "draft"
    draft.mkdir()
    put_in_place(draft, tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"out", ".out.v2.0123abcd.old"}


def test_a_run_that_was_killed_before_it_said_what_it_is_begins_anew(tmp_path):
    (tmp_path / ".out.unfinished").mkdir()
    for resume in (False, True):
        with resumable_folder(tmp_path / "out", {"a": 1}, ALONE, overwrite=resume, resume=resume) as draft:
            (draft / "records.parquet").touch()
        (tmp_path / ".out.unfinished").mkdir()
    assert os.listdir(tmp_path / "out")
