"""The command line as people type it, and errors as they read them."""
import errno
from dataclasses import dataclass

import pytest

from rotescope.errors import InputError, RunError, exit_cleanly
from rotescope.runs import output_folder
from rotescope.settings import parse, save


@dataclass(frozen=True)
class Config:
    name: str = "x"
    steps: int = 1
    fast: bool = False
    seeds: tuple[int, ...] = (0,)


def read(*argv, **settings):
    return parse(Config, list(argv), prog="p", description="d", **settings)


@pytest.mark.parametrize(("argv", "expected"), [
    ((), Config()), (("--fast",), Config(fast=True)), (("--fast", "--steps", "2"), Config(steps=2, fast=True)),
    (("--fast", "false"), Config()), (("--seeds", "3", "4", "--fast"), Config(fast=True, seeds=(3, 4))),
    (("--seeds", "3", "--seeds", "4"), Config(seeds=(3, 4))), (("--seeds", "[5,6]"), Config(seeds=(5, 6))),
    (("--name=a-b",), Config(name="a-b")),
])
def test_options_as_people_type_them(argv, expected):
    assert read(*argv) == expected


def test_out_is_short_for_output_dir():
    @dataclass(frozen=True)
    class Writes:
        output_dir: str

    for argv in (["--out", "a"], ["--out=a"], ["--output-dir", "a"]):
        assert parse(Writes, argv, prog="p", description="d").output_dir == "a"
    with pytest.raises(InputError):
        read("--out", "a")


@pytest.mark.parametrize("argv", [("--stepz", "2"), ("--step", "2"), ("--steps", "two"), ("--steps",), ("loose",)])
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
])
def test_errors_become_one_line_and_an_exit_code(error, code, capsys):
    @exit_cleanly
    def main():
        raise error
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == code
    assert len(capsys.readouterr().err.splitlines()) == 1


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
