"""Files appear whole or not at all, as readable as a user's other files."""
import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from rotescope.common.outputs import output_folder
from rotescope.common.whole_files import whole_file, write_text


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    old = os.umask(0o027)
    yield
    os.umask(old)


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(ZeroDivisionError), whole_file(file) as draft:
        draft.write_bytes(b"half") / 0
    assert (file.read_text(), [p.name for p in tmp_path.iterdir()]) == ("old", ["a.txt"])
    with whole_file(file) as draft:
        draft.write_text("new")
    assert (file.read_text(), [p.name for p in tmp_path.iterdir()]) == ("new", ["a.txt"])


def test_an_older_file_goes_where_nothing_is_written(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with whole_file(tmp_path / "a.txt"):
        pass
    assert not list(tmp_path.iterdir())


def test_weights_are_as_readable_as_other_files(tmp_path, umask):
    """safetensors writes files that their owner alone may read."""
    with output_folder(tmp_path / "out") as folder:
        (folder / "unet").mkdir()
        save_file({"w": torch.zeros(1)}, folder / "unet/w.safetensors")
        (folder / "a.txt").touch(0o600)
    assert {mode(p) for p in (tmp_path / "out").rglob("*") if p.is_file()} == {0o640}
    assert {mode(tmp_path / "out"), mode(tmp_path / "out/unet")} == {0o750}
