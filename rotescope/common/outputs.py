"""What every run leaves beside its output: whole folders, hashes, versions."""
import hashlib
import json
import os
import platform
import re
import shutil
import uuid
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rotescope import __version__
from rotescope.common.errors import InputError
from rotescope.common.processes import alone_in, check_alone
from rotescope.common.whole_files import usual_permissions, write_text

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "datasets", "open_clip_torch", "torchmetrics", "numpy",
             "pillow")


@contextmanager
def output_folder(path, overwrite=False, min_free_mb=50):
    """A folder that appears whole or not at all: filled under another name beside it, then renamed.

    Raises InputError, before anything is computed, when `path` exists and is not to be overwritten, the disk is nearly full, or
    another run fills it.
    """
    path = Path(path)
    check_output(path, overwrite, min_free_mb)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".{path.name}.{_mark()}.part"
    with alone_in(path):
        draft.mkdir()
        try:
            yield draft
            put_in_place(draft, path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def put_in_place(draft, path):
    """Rename a finished folder to `path`; what lies there goes last, and with it what runs that were killed here had moved
    away."""
    usual_permissions(draft)
    if path.exists():
        path.rename(path.parent / f".{path.name}.{_mark()}.old")
    draft.rename(path)
    name = re.escape(f".{path.name}.")
    for old in (p for p in path.parent.iterdir() if re.fullmatch(rf"{name}(?:[0-9a-f]{{8}}\.)?old", p.name)):
        shutil.rmtree(old, ignore_errors=True)


def _mark():
    """That no other run has."""
    return uuid.uuid4().hex[:8]


def check_output(path, overwrite=False, min_free_mb=50, inputs=(), texts=()):
    """Raise InputError if a run could not end by writing the folder `path`, would replace what it reads or write into it
    (check_apart), or if another run fills it now."""
    path = Path(path)
    check_apart(path, inputs, texts)
    check_alone(path)
    if path.is_file():
        raise InputError(f"{path} is a file: name a folder for the output")
    if path.exists() and any(path.iterdir()) and not overwrite:
        raise InputError(f"{path} exists and is not empty: name another folder or pass --overwrite")
    parent = next(p for p in [path, *path.absolute().parents] if p.exists())
    if not os.access(parent, os.W_OK):
        raise InputError(f"{parent} cannot be written to: name another folder for the output")
    free = shutil.disk_usage(parent).free / 1e6
    if free < min_free_mb:
        raise InputError(f"only {free:.0f} MB are free at {parent}, {min_free_mb} are needed: free some space or write elsewhere")


def check_apart(output, inputs, texts=()):
    """Raise InputError if one of the `inputs` is `output` or lies in it, since it would be gone once the output is there; or if
    `output` lies in one of them, which would hold other data the next time that it is read.

    inputs: paths; texts: what may name some, as NAME:key=FILE does. None and what does not exist are passed over.
    """
    named = [part for text in texts if text for split in ("[:=@]", "[:=@,]")
             for part in {str(text), *re.split(split, str(text))} if part]
    for part in (*(str(given) for given in inputs if given), *named) if os.path.exists(output) else ():
        if os.path.exists(part) and is_within(part, output):
            raise InputError(f"{part} is read, and the output {output} would replace it: name another place for the output")
    check_outside(output, (*inputs, *(part for text in texts if text for part in re.findall("=([^,]+)", str(text)))))


def check_outside(output, folders):
    """Raise InputError if `output` lies in one of the folders; None and what is no folder are passed over."""
    for folder in (given for given in folders if given and os.path.isdir(given)):
        if is_within(output, folder):
            raise InputError(f"{folder} is read, and the output {output} lies in it: name another place for the output")


def is_within(path, folder):
    """Is it that folder, or something in it, links followed?"""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def check_beside(path, output, option):
    """Raise InputError if what `option` names lies in the folder `output`, which is filled under another name, then renamed."""
    if path and is_within(path, output):
        raise InputError(f"{option} {path} lies in {output}, which will be replaced as a whole: name a folder beside it")


def check_file(file):
    """Raise InputError if a run could not end by writing `file`."""
    file = Path(file).absolute()
    place = next(p for p in [file, *file.parents] if p.exists())
    if place.is_dir() == (place == file) or not os.access(place, os.W_OK):
        raise InputError(f"{file} cannot be written: name a file in a folder that can be written to")


def check_kept(folder, file, how, what, again, beside=()):
    """Make `folder` a place that keeps `what` as `how` says in its `file`. InputError if it holds something else than that and
    files named `beside`, or what was kept in another way: then it tells that this is done `again`."""
    folder, about = Path(folder), Path(folder) / file
    folder.mkdir(parents=True, exist_ok=True)
    if not about.exists():
        if any(p.name not in beside for p in folder.iterdir()):
            raise InputError(f"{folder} holds no {what}, and is not empty: name another folder")
        write_json(about, how)
    try:
        found = json.loads(about.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if found != how:
        raise InputError(f"{folder} holds {what} of another release: remove it, and they are {again} again")


def sha256(file):
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_sha256(folder, suffixes=(".safetensors", ".json", ".txt", ".parquet")):
    """One hash for a model or data folder: over the relative names and hashes of its files, sorted."""
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.suffix in suffixes)
    lines = "".join(f"{sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def versions():
    found = {"rotescope": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def whole(number):
    """A number as an int where it is one, else as it is: timesteps are whole or not, as the scheduler has it."""
    return int(number) if number == int(number) else number


def write_json(file, content):
    """JSON in UTF-8, whole or not at all."""
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
