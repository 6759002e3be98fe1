"""Generated images against training images, in one call: in memory for a notebook, or into a
folder for the command."""
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rotescope.common.outputs import output_folder
from rotescope.common.processes import alone_in
from rotescope.common.progress import progress_bars
from rotescope.common.settings import plain
from rotescope.datasets.trainers.data_options import data_options
from rotescope.evaluate.descriptors.registry import get_descriptor
from rotescope.evaluate.inputs.output_checks import check_images, check_places, junit_file
from rotescope.evaluate.inputs.pictures_in_memory import data_of, samples_of
from rotescope.evaluate.inputs.samples import read_samples
from rotescope.evaluate.inputs.training_and_heldout import take_in
from rotescope.evaluate.measurement.findings import score_samples, totals
from rotescope.evaluate.measurement.per_prompt import prompts_of
from rotescope.evaluate.options import TITLE, measuring
from rotescope.evaluate.report.exports import junit
from rotescope.evaluate.report.html import write_files
from rotescope.evaluate.report.report import Report
from rotescope.evaluate.report.terminal import announce
from rotescope.evaluate.verdict.rules import check_power, parse_rules


def score(images: Any, train_data: Any, *, heldout_data: Any = None, base_images: Any = None, sweep: Any = None,
          descriptor: str = "auto", exact: str = "pixels", copy_null: str = "train", copy_quantile: float = 0.999,
          copy_threshold: float | None = None,
          alignment: str = "auto", verify: bool = True, trust_train_data: bool = False, search: str = "exact",
          index_dir: str | None = None,
          trust_sha256: tuple[str, ...] = (), fail_on: str | Sequence[str] = (), title: str = TITLE,
          on_image: Callable[[str], None] | None = None) -> Report:
    """Compare generated images with training images. Writes nothing unless `index_dir` is given.

    Parameters
    ----------
    images : str, Path or list
        The generated images: a folder (what ``rotescope generate`` wrote, or any other), or PIL images,
        (image, prompt) pairs or objects with .image and .prompt, as ``generate`` yields them.
    train_data : str, Path, Manifest or list of PIL images
        The training images, two or more.
    heldout_data : str, Path, Manifest or list of PIL images, optional
        Pictures that the model never saw: they measure chance, and fidelity.
    base_images : as `images`, optional
        By the base model on the same prompts and seeds: what it makes too, this fine-tune did not memorize.
    sweep : as `images`, optional
        A samples folder with one method a transition, for the trade-off curves.
    descriptor : str
        ``auto`` (pixels up to 128 px, else SSCD where it is present), ``pixels``, ``pdq``, ``sscd`` or
        another of the registry.
    exact : str
        What also counts as a copy, being all but identical to a training image:
        ``pixels``, ``pdq`` or ``none``.
    copy_null : str
        What the copy threshold is drawn from: ``train``, ``heldout`` or ``base``.
    copy_quantile : float
        A copy is closer to a training image than this share of the null.
    copy_threshold : float, optional
        A similarity of your own instead, from -1 to 1.
    alignment : str
        Text-image metric: a model's ``alignment/`` folder, ``open_clip:ARCHITECTURE``, ``none``, or
        ``auto``: the model's own.
    verify : bool
        Also verify copies by geometry: cropped, shifted, mirrored, turned, pasted.
    trust_train_data : bool
        Take it from you that the model was trained on `train_data`, where nothing shows it.
    search : str
        ``exact`` or ``faiss``.
    index_dir : str, optional
        Keeps the descriptors of the training images.
    trust_sha256 : tuple of str
        SHA-256 sums of TorchScript files that may be loaded.
    fail_on : str or list of str
        Rules for the verdict, ``[METHOD:]METRIC>LIMIT``; ``leaked_prompts>0`` if none is given.
    title : str
        Heading of the report.
    on_image : callable, optional
        Called with what it is for each image that is embedded: ``on_image("generated")``.

    Returns
    -------
    Report

    Raises
    ------
    InputError
        If an input is missing or cannot be read, or a rule cannot be judged.

    Examples
    --------
    >>> report = score(images, train_data="photos")
    >>> report.verdict.outcome in ("passed", "failed", "undecided")
    True
    >>> report["none"]["ungrouped"].copy_rate.n_images
    2
    """
    rules = parse_rules(fail_on)
    generated, unadapted, swept = (given if given is None else samples_of(given)
                                   for given in (images, base_images, sweep))
    manifest, heldout, left_out = data_of(train_data, heldout_data)
    return score_samples(
        generated, manifest, heldout, base=unadapted, sweep=swept, title=title, rule=rules, left_out=left_out,
        on_image=on_image,
        descriptor=descriptor, exact=exact, copy_null=copy_null, copy_quantile=copy_quantile,
        copy_threshold=copy_threshold,
        alignment=alignment, verify=verify, trust_train_data=trust_train_data, search=search, index_dir=index_dir,
        trust_sha256=trust_sha256)


# ----- the command

def score_folder(config) -> Report:
    """Score as a ScoreConfig says, and write the report into config.output_dir. Whatever can be
    wrong is found beforehand."""
    check_places(config, config.generated, config.base_generated, config.sweep)
    with alone_in(config.output_dir):
        return _score_folder(config)


def _score_folder(config):
    rules = parse_rules(config.fail_on)
    get_descriptor(config.descriptor, trust_sha256=config.trust_sha256)
    generated, sweep, base = (folder and read_samples(folder)
                              for folder in (config.generated, config.sweep, config.base_generated))
    sizes = {cell: len(at) for cell, at in generated.cells.items()}
    if config.fail_on:
        check_power(rules, prompts_of(generated))
    announce(rules, config, max(sizes.values()))
    manifest, heldout, left_out = take_in(config.train_data, config.heldout_data, options=data_options(config))
    check_images(config, manifest, heldout)
    with progress_bars(totals(generated, manifest, heldout, sweep, base, config.verify)) as on_image:
        report = score_samples(
            generated, manifest, heldout, base=base, sweep=sweep, config=plain(config),
            title=config.title, rule=rules, left_out=left_out, on_image=on_image, **measuring(config))
    with output_folder(config.output_dir, config.overwrite) as draft:
        write_all(report, draft, config)
    return report


def write_all(report, folder, config):
    """The report for people and for machines; the JUnit file where the user wants it."""
    write_files(report, folder, config.redact)
    if config.junit_xml:
        file = junit_file(config, Path(folder))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(junit(report))
