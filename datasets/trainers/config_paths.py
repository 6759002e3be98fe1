"""Paths that stand inside a configuration or a table: they are data, and followed only where the user named
the place."""
import os
import re
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.common.wording import printable
from rotescope.datasets.trainers.data_options import DataOptions

WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def named_place(name, config: Path, options: DataOptions, what: str = "folder") -> Path:
    """A folder or file that a trainer's configuration names.

    Parameters
    ----------
    name : str
        As it stands there: absolute, or relative to the configuration's folder. Trainers start elsewhere, so
        with `options.allow_outside_paths` a relative one may also count from the folder above or from the
        working directory.
    config : Path
        The configuration.
    options : DataOptions
        Whether it may lie outside of the configuration's folder, links followed.
    what : str
        "folder" or "file".

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the name is none, nothing is there, or it lies outside and that is not allowed.
    """
    shown = printable_name(config)
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise InputError(f"{shown} should name a {what} of pictures and has {name!r}: write its path")
    home = config.parent.absolute()
    given = _local(name)
    tried = [home / given]
    if options.allow_outside_paths and not given.is_absolute():
        tried += [home.parent / given, Path.cwd() / given]
    is_there = Path.is_dir if what == "folder" else Path.is_file
    if not options.allow_outside_paths and not _is_within(tried[0], home):
        raise InputError(f"{shown} names the {what} {name!r}, which lies outside of its own folder: pass "
                         "--allow_outside_paths if that is yours to read (rotescope prepare has it, and "
                         "makes a manifest for any command), or put the configuration beside the pictures")
    found = next((place for place in tried if is_there(place)), None)
    if found is None:
        raise InputError(f"{shown} names the {what} {name!r}, and there is none{_hint(name)}: correct the "
                         "path")
    return found


def apart_from(place: Path, folder: Path, where: str, key: str) -> Path:
    """The folder of control pictures or masks that `where` names under `key`. InputError if the pictures' own
    folder lies in it: nothing would then be left to train on."""
    if folder.resolve().is_relative_to(place.resolve()):
        raise InputError(f"{where} has the folder of its pictures for its {key} too: correct one of the two")
    return place


def file_in(folder: Path, name) -> Path:
    """A picture that a table in `folder` names -> its path. InputError for a name that is none, or that
    leaves the folder.

    A link that leaves it is refused too, except into the blobs of the hub's cache, of which a downloaded data
    set is made.
    """
    if not is_file_name(name):
        raise InputError(f"{name!r} is no file's name: write one")
    given = _local(name)
    place = folder / given
    inside = Path(os.path.abspath(place)).is_relative_to(os.path.abspath(folder))   # links come next
    if not inside or not (_is_within(place, folder) or _is_blob(place, folder)):
        raise InputError(f"{printable_name(name)} leads out of {printable_name(folder)}, and is not "
                         "followed: put the picture there")
    return place


def is_file_name(name) -> bool:
    """Whether a file can be called so."""
    try:
        return isinstance(name, str) and bool(name) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:   # half a character
        return False


def printable_name(path) -> str:
    """A path as text that can be printed."""
    return printable(str(path))


def _local(name):
    """Backslashes of a relative path from Windows part folders too."""
    return Path(name if os.sep in name or WINDOWS.match(name) else name.replace("\\", os.sep))


def _is_within(place, folder):
    """Links followed."""
    try:
        return place.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):   # a circle of links
        return False


def _is_blob(place, folder):
    """Whether a link leads into the blobs beside the snapshot that `folder` is part of."""
    snapshots = next((p for p in folder.absolute().parents if p.name == "snapshots"), None)
    return snapshots is not None and _is_within(place, snapshots.parent / "blobs")


def _hint(name):
    return " (it is a path of Windows)" if os.sep == "/" and WINDOWS.match(name) else ""
