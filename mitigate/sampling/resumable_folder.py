"""An output folder that a killed run leaves behind unfinished, and that the next run goes on with."""
import json
import shutil
from contextlib import contextmanager
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.common.outputs import put_in_place, write_json
from rotescope.common.processes import alone_in

FREE = ("active", "allow_unused_keys", "device", "offload", "output_dir", "overwrite", "resume")  # what may differ


@contextmanager
def resumable_folder(path, about, state, *, overwrite=False, resume=False):
    """Like outputs.output_folder: whole or absent. But the draft has a fixed name, and stays once run.json is not alone in it.

    about: what run.json says; a draft that was made with other settings is refused. state: accelerate's PartialState; the main
    process makes, checks and renames the folder, all of them fill it. InputError while another run fills it.
    """
    with alone_in(path):
        yield from _filled(Path(path), about, state, overwrite, resume)


def _filled(path, about, state, overwrite, resume):
    draft = path.parent / f".{path.name}.unfinished"
    if state.is_main_process:
        _open(draft, about, overwrite, resume)
    state.wait_for_everyone()
    try:
        yield draft
    except BaseException:
        if state.is_main_process and len(list(draft.iterdir())) <= 1:
            shutil.rmtree(draft)
        raise
    if state.is_main_process:
        put_in_place(draft, path)
    state.wait_for_everyone()


def is_finished(path):
    return (Path(path) / "records.parquet").exists() and (Path(path) / "run.json").exists()


def check_same(folder, about):
    """InputError if the run in `folder` has other settings than `about`."""
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'run.json'} cannot be read ({error}): pass --overwrite to start anew") from error
    if "guidance_scale" not in about:   # the pipeline's own, which the finished run names
        found.pop("guidance_scale", None)
    for key, there, here in _differences(found, json.loads(json.dumps(about))):
        raise InputError(f"the run in {folder} has {key} {there}, not {here}: give it the same settings, or --overwrite without "
                         "--resume to start anew")


def _open(draft, about, overwrite, resume):
    begun = (draft / "run.json").exists()  # a run that was killed before that has left nothing
    if begun and resume:
        return check_same(draft, about)
    if begun and not overwrite:
        raise InputError(f"an unfinished run is at {draft}: pass --resume to go on with it, or --overwrite to start anew")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    return write_json(draft / "run.json", about)


def _differences(there, here, name=""):
    """(name, value there, value here) wherever two nested dicts differ."""
    for key in sorted({*there, *here} - set(FREE)):
        a, b = there.get(key), here.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{name}{key}.")
        elif a != b:
            yield f"{name}{key}", a, b
