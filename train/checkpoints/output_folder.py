"""The output folder of a training: checkpoints appear in it whole or not at all, and the result last of all."""
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from rotescope.common.errors import InputError
from rotescope.common.outputs import check_output, check_outside, output_folder
from rotescope.common.processes import check_alone
from rotescope.common.whole_files import usual_permissions
from rotescope.models.model_files import check_utf8

RECORD = "state.json"                               # in a checkpoint
LAST = ("model_index.json", "rotescope.json")       # of a result: until they are there, nobody takes it for one
WORK = (r"\.?checkpoint-\d+(\.part|\.old)?|logs|validation|\.?monitor\.(jsonl|png)(\.\d+\.part)?|"
        r"\.result\.part")                         # what a run leaves before its result


@contextmanager
def durable_folder(path):
    """A folder that is on the disk whole under its name, whenever the power goes, or not under that name at all."""
    path = Path(path)
    with _draft(path.with_name(f".{path.name}.part")) as draft:
        yield draft
        usual_permissions(draft)
        for entry in [*draft.rglob("*"), draft]:
            _fsync(entry)
        if path.exists():
            discard(path)
        draft.rename(path)
        _fsync(path.parent)


@contextmanager
def result_folder(out, overwrite):
    """The result of a run, beside the checkpoints that lie in `out` already, if any; what tells that it is there comes last."""
    out = Path(out)
    if not work_in(out):
        with output_folder(out, overwrite) as folder:
            yield folder
        return
    with _draft(out / ".result.part") as draft:
        yield draft
        usual_permissions(draft)
        old = [e for e in out.iterdir() if not _is_work(e)] if overwrite else [out / e.name for e in draft.iterdir()]
        for entry in [*(out / name for name in reversed(LAST)), *old]:
            _remove(entry)
        for entry in sorted(draft.iterdir(), key=lambda e: LAST.index(e.name) if e.name in LAST else -1):
            entry.rename(out / entry.name)


@contextmanager
def _draft(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def discard(folder):
    """Remove a folder so that no half of it is ever seen under its name."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    shutil.rmtree(old)


def _remove(entry):
    shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)


def _fsync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_work(entry):
    return re.fullmatch(WORK, entry.name) is not None


def work_in(out):
    """What a run leaves in its output folder before its result."""
    return [e for e in Path(out).iterdir() if _is_work(e)] if Path(out).is_dir() else []


def clear_work(out):
    """A run that starts anew leaves nothing of an earlier one to resume from."""
    for entry in work_in(out):
        _remove(entry)


def checkpoints(out):
    """The checkpoints in a folder, oldest first."""
    return sorted((p for p in Path(out).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)), key=_step_of)


def _step_of(checkpoint):
    return int(checkpoint.name.split("-")[1])


def drop_later(out, step):
    """Remove the checkpoints after a step: a run that resumed before them makes another history, and would find them "latest"."""
    for folder in reversed(checkpoints(out)):
        if _step_of(folder) > step:
            discard(folder)


def check_place(config, min_free_mb=50):
    """-> the checkpoint to resume from, or None. InputError if the run could not leave its result in output_dir."""
    check_utf8(config.output_dir)
    check_alone(config.output_dir)
    out, resumed = Path(config.output_dir), find_checkpoint(config.resume_from_checkpoint, config.output_dir)
    unfinished = bool(work_in(out)) and not (out / LAST[-1]).exists()  # perhaps killed in its first checkpoint
    if unfinished and not (config.overwrite or config.resume_from_checkpoint):
        raise InputError(f"{out} holds an unfinished run: go on with --resume_from_checkpoint latest, or pass --overwrite")
    replaced = config.overwrite or not unfinished  # else what lies there stays, beside the result
    read = (config.pretrained_model_name_or_path, config.train_data, config.monitor_heldout)
    check_output(out, config.overwrite or unfinished, min_free_mb, inputs=read if replaced else ())
    for place in (place for place in (out, config.cache_dir) if place):
        check_outside(place, read)
    return resumed


def cache_of(config):
    """-> the folder of latents and text embeddings: --cache_dir, or one beside output_dir for as long as the run takes."""
    out = Path(config.output_dir).resolve()
    return Path(config.cache_dir) if config.cache_dir else out.with_name(f".{out.name}.cache")


def check_cache(config):
    """InputError if no file can be made in the folder that cache_of names, there or not yet; nothing is left of the trial."""
    folder = cache_of(config)
    there = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InputError(f"no latents and text embeddings can be kept at {folder}, since {there} takes no file "
                         f"({error.strerror}): name another --cache_dir") from error


def clear_cache(config):
    """What a run that has ended leaves of them: nothing, unless --cache_dir asks for it."""
    if not config.cache_dir:
        shutil.rmtree(cache_of(config), ignore_errors=True)


def find_checkpoint(name, out):
    """What --resume_from_checkpoint names -> folder; None where there is nothing to resume. InputError if it is no checkpoint."""
    if name is None:
        return None
    if name == "latest":
        return next(reversed(checkpoints(out)), None)
    folder = Path(name) if Path(name).exists() else Path(out) / name  # diffusers' scripts take the bare name too
    if not (folder / RECORD).exists():
        raise InputError(f"no checkpoint at {name} (no {RECORD} there): name a checkpoint-… folder, or latest")
    return folder
