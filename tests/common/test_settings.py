"""The command line as people type it, and errors as they read them."""
import errno
import os
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from rotescope import cli
from rotescope.common.errors import InputError, RunError, exit_cleanly
from rotescope.common.outputs import check_file, check_output, output_folder
from rotescope.common.settings import option_names, option_names_in_file, parse, save
from rotescope.models.model_options import BASE


@dataclass(frozen=True)
class Config:
    name: str = "x"
    steps: int = 1
    fast: bool = False
    seeds: tuple[int, ...] = (0,)
    ids: tuple[str, ...] = ()


def read(*argv, **settings):
    return parse(Config, list(argv), prog="p", description="d", **settings)


@pytest.mark.parametrize(("argv", "expected"), [
    ((), Config()), (("--fast",), Config(fast=True)), (("--fast", "--steps", "2"), Config(steps=2, fast=True)),
    (("--fast", "false"), Config()), (("--seeds", "3", "4", "--fast"), Config(fast=True, seeds=(3, 4))),
    (("--seeds", "3", "--seeds", "4"), Config(seeds=(3, 4))), (("--seeds", "[5,6]"), Config(seeds=(5, 6))),
    (("--ids", "1234567890123456", "null", "yes", "1e3", "og-stp:before=-2", "é"),
     Config(ids=("1234567890123456", "null", "yes", "1e3", "og-stp:before=-2", "é"))),
    (("--seeds=3", "4"), Config(seeds=(3, 4))), (("--ids", "007"), Config(ids=("007",))),
    (("--ids", "1e3", "--seeds", "2"), Config(ids=("1e3",), seeds=(2,))),
    (("--ids", "[1, none]"), Config(ids=("1", "none"))), (("--ids=copies>0",), Config(ids=("copies>0",))),
    (("--name=a-b",), Config(name="a-b")),
])
def test_options_as_people_type_them(argv, expected):
    assert read(*argv) == expected


def test_one_name_for_the_training_images():
    @dataclass(frozen=True)
    class Trains:
        train_data: str = "x"

    for argv in (["--train_data", "a"], ["--train_data_dir", "a"], ["--train-data-dir=a"], ["--dataset_name", "a"]):
        assert parse(Trains, argv, prog="p", description="d").train_data == "a"
        assert option_names(argv) == {"train_data"}
    with pytest.raises(InputError, match="--train_data is given twice"):
        parse(Trains, ["--train_data", "a", "--train_data_dir", "b"], prog="p", description="d")


def test_an_older_file_of_options_names_the_training_images_otherwise(tmp_path):
    @dataclass(frozen=True)
    class Trains:
        train_data: str = "x"
        output_dir: str = "y"

    file = tmp_path / "config.yaml"
    file.write_text("train_data_dir: a b, c\noutput_dir: é\n")
    found = parse(Trains, ["--config", str(file)], prog="p", description="d")
    assert found == Trains("a b, c", "é")
    assert option_names_in_file(["--config", str(file)]) == {"train_data", "output_dir"}
    file.write_text("train_data_dir: a\ntrain_data: b\n")
    with pytest.raises(InputError, match="keep one"):
        parse(Trains, ["--config", str(file)], prog="p", description="d")


@pytest.mark.parametrize("argv", [("--steps", "1", "--steps", "2"), ("--fast", "--fast", "false"), ("--name=a", "--name", "b")])
def test_an_option_that_is_given_twice_is_refused(argv):
    with pytest.raises(InputError, match=f"{argv[0].partition('=')[0]} is given twice: give it once"):
        read(*argv)


def test_help_has_a_short_usage_groups_and_commands_to_copy(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    @dataclass(frozen=True)
    class Base:
        HEADINGS: ClassVar = {"model": "the model"}
        model: str
        """which one"""

    @dataclass(frozen=True)
    class Whole(Base):
        HEADINGS: ClassVar = {"output_dir": "output"}
        output_dir: str = "o"
        """where"""

    with pytest.raises(SystemExit):
        parse(Whole, ["--help"], prog="p", description="What it\ndoes.\n\n    p --model m --output_dir o\n    p " + "--x y " * 20)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: p --model MODEL [--option VALUE …]"
    assert "What it does." in lines
    assert "    p --model m --output_dir o" in lines
    option = "  --model MODEL         which one (required, type: str)"
    assert lines.index("the model:") < lines.index(option) < lines.index("output:")
    assert max(map(len, lines)) <= 80
    assert sum(line.endswith("\\") for line in lines) == 1


def test_out_is_short_for_output_dir():
    @dataclass(frozen=True)
    class Writes:
        output_dir: str

    for argv in (["--out", "a"], ["--out=a"], ["--output-dir", "a"]):
        assert parse(Writes, argv, prog="p", description="d").output_dir == "a"
    with pytest.raises(InputError):
        read("--out", "a")


@pytest.mark.parametrize("argv", [("--stepz", "2"), ("--step", "2"), ("--steps", "two"), ("--steps",), ("loose",),
                                  ("--ids", "[a")])
def test_an_unknown_key_or_a_bad_value_is_an_input_error_in_one_line(argv):
    with pytest.raises(InputError) as error:
        read(*argv)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("argv", "meant"), [
    (("--step", "2"), "--steps"), (("--steps", "2", "--seed=1"), "--seeds"), (("--fsat",), "--fast"),
    (("--quite-other", "1"), None), (("--steps", "two"), None)])
def test_an_unknown_option_is_told_the_nearest(argv, meant):
    with pytest.raises(InputError) as error:
        read(*argv)
    assert (f"; did you mean {meant}? (" in str(error.value)) if meant else ("did you mean" not in str(error.value))


def test_a_saved_config_comes_back_and_the_command_line_wins(tmp_path):
    save(Config("y", 5, True, (1, 2)), tmp_path / "c.yaml")
    assert read(config=tmp_path / "c.yaml") == Config("y", 5, True, (1, 2))
    assert read("--config", str(tmp_path / "c.yaml"), "--steps", "6").steps == 6
    (tmp_path / "c.yaml").write_text("stepz: 3\n")
    with pytest.raises(InputError, match="stepz.* did you mean --steps"):
        read("--config", str(tmp_path / "c.yaml"))


@pytest.mark.parametrize(("error", "code"), [
    (InputError("bad\nthing"), 2), (RunError("went wrong"), 3), (OSError(errno.ENOSPC, "No space left on device"), 3),
    (RuntimeError("io error: No space left on device (os error 28)"), 3), (KeyboardInterrupt(), 130),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more"), 3), (MemoryError(), 3),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), 3),
    (PermissionError(errno.EACCES, "Permission denied", "photos"), 2), (OSError(errno.ENAMETOOLONG, "Name too long", "x"), 2),
])
def test_errors_become_one_line_and_an_exit_code(error, code, capsys):
    @exit_cleanly
    def main():
        raise error
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == code
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_reader_that_left_hears_of_no_error_and_the_code_stays(monkeypatch):
    @exit_cleanly
    def main():
        print("much")
        raise InputError("wrong")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", closed)
        patched.setattr(sys, "stderr", closed)
        with pytest.raises(SystemExit) as left:
            main()
    assert left.value.code == 2


def test_a_bug_is_not_hidden_and_is_no_broken_rule(capsys):
    @exit_cleanly
    def main():
        raise ZeroDivisionError
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 3
    assert "Traceback" in capsys.readouterr().err


def test_an_output_folder_is_whole_or_absent(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileExistsError), output_folder(out) as draft:
        [(draft / "half").touch(exist_ok=False) for _ in range(2)]
    assert not list(tmp_path.iterdir())
    with output_folder(out) as draft:
        (draft / "a").write_text("1")
    with pytest.raises(InputError, match="overwrite"), output_folder(out):
        pass
    with output_folder(out, overwrite=True) as draft:
        (draft / "b").write_text("2")
    assert [p.name for p in out.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_output_does_not_replace_what_is_read(tmp_path):
    out = tmp_path / "out"
    (out / "samples").mkdir(parents=True)
    (out / "c.json").touch()
    (tmp_path / "link").symlink_to(out / "samples")
    for given in (out, out / "samples", tmp_path / "link"):
        with pytest.raises(InputError, match="would replace it"):
            check_output(out, overwrite=True, inputs=(None, given))
    for given in (f"dtp-calibrated:calibration={out}/c.json", f"any:@{out}/c.json"):
        with pytest.raises(InputError, match="would replace it"):
            check_output(out, overwrite=True, texts=(None, "none", given))
    check_output(out, overwrite=True, inputs=(tmp_path / "other", out / "gone", None, ""))
    check_output(tmp_path / "new", inputs=(out,))


@pytest.mark.parametrize("argv", [
    f"audit --model {BASE} --train_data o/p", "audit --model o/p --train_data x",
    f"audit --model {BASE} --train_data x --prompts o/p",
    f"audit --model {BASE} --train_data x --base o/p", "generate --prompts o/p", "generate --prompts x --lora o/p",
    "generate --prompts x --mitigation og-recall:training=o/p", "detect --prompts x --train_data o/p",
    "retrigger --train_data x --heldout_data o/p", "preflight o/p", "compare --checkpoint o/p", "figures --checkpoint o/p",
    "dose --train_data o/p", "finetune --train_data o/p", "finetune --train_data x --monitor_heldout o/p",
    "retrigger --train_data x --index_dir o/index", "score --generated x --train_data o/p"])
def test_no_command_replaces_what_it_reads(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o/p").mkdir(parents=True)
    (tmp_path / "x").mkdir()
    with pytest.raises(SystemExit) as left:
        cli.main([*argv.split(), "--output_dir", "o", "--overwrite"])
    assert left.value.code == 2
    assert "name a" in capsys.readouterr().err.splitlines()[-1].partition("o/")[2]
    assert (tmp_path / "o/p").is_dir()


@pytest.mark.parametrize("argv", ["prepare --train_data f.parquet", "prepare --train_data x --mix_data_dir f.parquet "
                                  "--mix_ratio 1", "calibrate --prompts f.parquet"])
def test_no_file_replaces_what_it_is_made_of(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.parquet").touch()
    with pytest.raises(SystemExit) as left:
        cli.main([*argv.split(), "--output_file", "f.parquet", "--overwrite"])
    assert left.value.code == 2
    assert "is read, and the output" in capsys.readouterr().err


@pytest.mark.parametrize("argv", ["finetune --output_dir", "generate --prompts x --output_dir o --lora",
                                  "generate --prompts x --output_dir o --model"])
def test_a_model_under_a_name_that_its_libraries_cannot_take_is_refused(argv, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([*argv.split(), os.fsdecode(b"o\xffut")])
    assert left.value.code == 2
    assert "is no UTF-8" in capsys.readouterr().err.splitlines()[-1]


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    check_file(tmp_path / "file")
    check_file(tmp_path / "new/er/file")
    for wrong in (tmp_path, tmp_path / "file/below"):
        with pytest.raises(InputError, match="cannot be written"):
            check_file(wrong)
