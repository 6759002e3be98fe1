"""Where score and audit write what a user asks for, and what they must not replace by it: checked before anything is measured."""
import os
import shlex
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

from rotescope.common.console import say
from rotescope.common.errors import InputError
from rotescope.common.outputs import check_apart, check_beside, check_file, check_output, check_outside, is_within
from rotescope.common.wording import printable

WRITTEN = ("report.html", "report.json", "pairs.parquet", "model_card.md", "badge.svg",  # into output_dir
           "samples", "base", "retrigger", "to_share")


def check_places(config, *inputs):
    """config: a MeasureConfig; inputs: what it reads beside what every MeasureConfig names. Raises InputError if the run could
    not leave what it is asked for, or would replace what it reads."""
    read = (*inputs, config.train_data, config.heldout_data)
    check_output(config.output_dir, config.overwrite, inputs=read, texts=(config.descriptor, config.alignment, *config.fail_on))
    check_beside(config.index_dir, config.output_dir, "--index_dir")
    if config.junit_xml:
        _check_junit(config.junit_xml, config.output_dir)
    for place in (place for place in (config.index_dir, config.junit_xml) if place):
        check_outside(place, read)


def check_images(config, *manifests):
    """Raise InputError if the run would replace an image that a manifest names, wherever the manifest lies."""
    check_apart(config.output_dir, {e.file for manifest in manifests for e in manifest or ()})


def _check_junit(file, out):
    within = _within(file, out)
    if Path(file).is_dir() or within and within[0] in (".", *WRITTEN):
        raise InputError(f"--junit_xml {file} is a folder, or a part of the report: name another file")
    if not within:
        check_file(file)


def junit_file(config, folder):
    """Where the JUnit file goes: into `folder`, which becomes output_dir, if it is to lie there, else where the user says."""
    within = _within(config.junit_xml, config.output_dir)
    return Path(folder, *within) if within else Path(config.junit_xml)


def _within(file, folder):
    """-> the parts of its name from there on, (".",) for the folder itself, () if it lies elsewhere."""
    if not is_within(file, folder):
        return ()
    return Path(os.path.relpath(os.path.realpath(file), os.path.realpath(folder))).parts or (".",)


# ----- what is dear

@contextmanager
def samples_kept(draft, options, more=()):
    """Whatever fails once the samples in a command's draft are whole, they stay, beside the output: moved there, and said to be.

    options: what rotescope score is to be told beside them, --output_dir among it. more: names in the draft of what is kept with
    them, and whose samples, or files, no score takes.
    """
    try:
        yield
    except BaseException:
        _keep(Path(draft), options, more)
        raise


def _keep(draft, options, more):
    out = Path(options[options.index("--output_dir") + 1]).absolute()
    scored = {n: option for n, option in (("samples", "--generated"), ("base", "--base_generated"))
              if n not in more and _is_whole(draft / n)}
    beside = [name for name in more if _is_dear(draft / name)]
    if not scored.keys() & {"samples"} and not beside:
        return
    free = next(places for places in _places(out, [*scored, *beside]) if not any(place.exists() for place in places.values()))
    moved = {name: str((draft / name).rename(place)) for name, place in free.items()}
    if beside:
        _tell("kept, since they are dear", shlex.join(moved[name] for name in beside))
    if "samples" in scored:
        told = [word for name, option in scored.items() for word in (option, moved[name])]
        _tell("the samples are kept; go on with", shlex.join(["rotescope", "score", *told, *options]))


def _tell(what, line):
    say(f"{what}: {printable(line)}")


def _is_dear(place):
    """A file, a folder of samples, or a folder of such folders."""
    return place.is_file() or place.is_dir() and any(map(_is_whole, (place, *place.iterdir())))


def _places(out, names):
    """-> {"samples": out.samples, …}, then out.samples-2 and so on."""
    for suffix in chain([""], map("-{}".format, count(2))):
        yield {name: out.with_name(f"{out.name}.{name}{suffix}") for name in names}


def _is_whole(folder):
    return (folder / "records.parquet").exists() and (folder / "run.json").exists()
