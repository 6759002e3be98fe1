"""The commands as functions, for a notebook or a program: in memory, silent, nothing written unless a folder is named.

Here is what spans the layers, in which the others stand. `from rotescope import audit` and so on.
"""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rotescope.common.console import silenced
from rotescope.datasets.manifest import Manifest
from rotescope.evaluate.measurement.findings import report_from
from rotescope.evaluate.report.report import Report
from rotescope.library_arguments import config_with, data_on_disk, own_number, run_place, several_of
from rotescope.mitigate.contract.mitigation import Mitigation
from rotescope.models.model_files import lora_names
from rotescope.options.audit import AuditConfig
from rotescope.options.compare import CompareConfig
from rotescope.options.repair import RepairConfig
from rotescope.procedures.audit import run_audit
from rotescope.procedures.compare import comparison_table, run_comparison
from rotescope.procedures.finetune import run_finetune
from rotescope.procedures.repair.repairing import run_repair
from rotescope.procedures.repair.trials import RepairFindings
from rotescope.train.options.finetune_options import FinetuneConfig


def audit(model: str | Path, train_data: str | Path | Manifest, *, lora: str | Path | Sequence[str | Path] | None = None,
          heldout_data: str | Path | Manifest | None = None,
          mitigations: str | Mitigation | Sequence[str | Mitigation] = ("none",),
          seeds: Iterable[int] = (0, 1, 2, 3), fail_on: str | Sequence[str] = (), output_dir: str | Path | None = None,
          progress: bool = False, **options: Any) -> Report:
    """Sample a model's training captions and look for copies of training images: what `rotescope audit` does.

    Parameters
    ----------
    model : str or Path
        A folder in diffusers' layout, or a name on the hub.
    train_data : str, Path or Manifest
        What the model was trained on, with captions.
    lora : str or Path, or a sequence of them, optional
        LoRA files or folders, on top of the model; ``a.safetensors:0.8`` has a strength.
    heldout_data : str, Path or Manifest, optional
        Pictures that the model never saw: they measure chance and fidelity.
    mitigations : str or Mitigation, or a sequence of them
        Names of `list_mitigations`, perhaps with settings, or objects; "none" is plain guidance.
    seeds : iterable of int
        One image a prompt and a seed.
    fail_on : str or sequence of str
        Rules for the verdict, ``[METHOD:]METRIC>LIMIT``.
    output_dir : str or Path, optional
        Keep samples and report there. Otherwise they lie in a temporary folder that goes with the report.
    progress : bool
        Show bars and lines on stderr, as the command does.
    **options
        The command's other options, such as ``num_inference_steps`` or ``max_prompts``.

    Returns
    -------
    Report
        ``report.verdict``, ``report["none"]["duplicated"].copy_rate``, ``report.save(folder)``.

    Raises
    ------
    InputError
        If an input is missing or wrong; before the model is loaded.

    Examples
    --------
    >>> from rotescope import audit
    >>> report = audit(model=model, train_data=photos, mitigations=["none", "og-stp"], seeds=range(2), num_inference_steps=2)
    >>> report.verdict.outcome in ("passed", "failed", "undecided")
    True
    >>> report["none"]["ungrouped"].copy_rate.n_images
    12
    """
    with run_place(output_dir) as (folder, kept), silenced(not progress):
        given = {"model": str(model), "lora": lora_names(lora) or None, "seeds": tuple(map(own_number, seeds)),
                 "train_data": data_on_disk(train_data, Path(kept.name) / "train.parquet"),
                 "heldout_data": data_on_disk(heldout_data, Path(kept.name) / "heldout.parquet"),
                 "mitigation": several_of(mitigations), "fail_on": several_of(fail_on), "output_dir": str(folder)}
        report = run_audit(config_with(AuditConfig, given, options))
        return report_from(report, folder / "samples", kept)


@dataclass(frozen=True)
class Comparison:
    """Mitigations side by side on one checkpoint.

    Attributes
    ----------
    methods : dict
        {method: {"groups": {group of prompts: figures}, "cost": seconds and memory, "front": whether no other has fewer copies
        at no less alignment}}, as compare.json has it.
    report : Report
        Of the same images.
    """
    methods: dict[str, dict[str, Any]]
    report: Report

    @property
    def front(self) -> list[str]:
        """The methods that no other beats in copies and alignment both."""
        return [name for name, row in self.methods.items() if row["front"]]

    def table(self) -> str:
        """In Markdown."""
        return comparison_table(self.methods, self.report).markdown()


def compare(checkpoint: str | Path, *, mitigations: str | Mitigation | Sequence[str | Mitigation] = (),
            seeds: Iterable[int] = (0, 1), output_dir: str | Path | None = None, progress: bool = False,
            **options: Any) -> Comparison:
    """What each mitigation removes on a fine-tuned model, and at what price: what `rotescope compare` does.

    Parameters
    ----------
    checkpoint : str or Path
        A fine-tuned model's folder, with its manifest.parquet, which marks duplicated and control images.
    mitigations : str or Mitigation, or a sequence of them
        All that serve the model, unless given.
    seeds : iterable of int
        One image a caption and a seed.
    output_dir : str or Path, optional
        Keep samples, table and picture there.
    progress : bool
        Show bars on stderr.
    **options
        The command's other options, such as ``num_inference_steps`` or ``heldout_data``.

    Returns
    -------
    Comparison

    Raises
    ------
    InputError
        If the checkpoint or an option is wrong.

    Examples
    --------
    >>> from rotescope import compare, finetune
    >>> folder = finetune("photos", "memorizes", duplicated=1, copies=4, controls=1, max_train_steps=2, train_batch_size=8)
    >>> found = compare(folder, mitigations=["none", "stp"], seeds=[0], num_inference_steps=2, repeats=1, heldout_data=None)
    >>> list(found.methods)
    ['none', 'stp']
    """
    with run_place(output_dir) as (folder, kept), silenced(not progress):
        given = {"checkpoint": str(checkpoint), "mitigation": several_of(mitigations), "seeds": tuple(map(own_number, seeds)),
                 "output_dir": str(folder)}
        rows, report = run_comparison(config_with(CompareConfig, given, options))
        return Comparison(rows, report_from(report, folder / "samples", kept))


def finetune(train_data: str | Path | Manifest, output_dir: str | Path, *, model: str | Path | None = None,
             progress: bool = False, on_step: Any = None, **options: Any) -> Path:
    """Fine-tune a model, whole or a LoRA, on images that repeat as planned: what `rotescope finetune` does.

    Parameters
    ----------
    train_data : str, Path or Manifest
        Captioned images. A Manifest is kept beside the output, as OUTPUT_DIR.train.parquet, so that the run's config can be
        used again.
    output_dir : str or Path
        Where the checkpoint, its manifest and its record go.
    model : str or Path, optional
        A folder in diffusers' layout, or a name on the hub; the embedded model unless given.
    progress : bool
        Show bars and lines on stderr.
    on_step : callable, optional
        Called with each StepResult: step, loss, lr, images.
    **options
        The command's other options, such as ``duplicated``, ``copies``, ``lora``, ``max_train_steps``.

    Returns
    -------
    Path
        Of the checkpoint's folder.

    Raises
    ------
    InputError
        If an input or an option is wrong; before anything expensive.
    RunError
        If the loss is no number.

    Examples
    --------
    >>> from rotescope import finetune
    >>> folder = finetune("photos", "finetuned", duplicated=1, copies=4, controls=1, max_train_steps=2, train_batch_size=8)
    >>> (folder / "manifest.parquet").is_file()
    True
    """
    beside = Path(output_dir).with_name(f"{Path(output_dir).name}.train.parquet")
    with silenced(not progress):
        given = {"train_data": data_on_disk(train_data, beside), "output_dir": str(output_dir)}
        given |= {"pretrained_model_name_or_path": str(model)} if model else {}
        return run_finetune(config_with(FinetuneConfig, given, options), on_step=on_step, progress=progress)


def repair(model: str | Path, lora: str | Path, output_dir: str | Path, *, train_data: str | Path | Manifest | None = None,
           heldout_data: str | Path | Manifest | None = None, seeds: Iterable[int] = (0, 1, 2, 3),
           fail_on: str | Sequence[str] = (), progress: bool = False, **options: Any) -> RepairFindings:
    """Change a LoRA's weights until an audit passes, then audit it on other seeds: what `rotescope repair` does.

    Parameters
    ----------
    model : str or Path
        The base: a folder in diffusers' layout, or a name on the hub.
    lora : str or Path
        The LoRA to repair, a file or a folder; ``mine.safetensors:0.8`` is audited at that strength.
    output_dir : str or Path
        Where the repaired LoRA, its report and both audits go; nothing is written where nothing leaks.
    train_data, heldout_data : str, Path or Manifest, optional
        What the LoRA was trained on, with captions, and what it never saw. Without the first nothing is judged.
    seeds : iterable of int
        One image a prompt and a seed; the repaired LoRA is judged on others.
    fail_on : str or sequence of str
        Rules for the verdict, ``METRIC>LIMIT``.
    progress : bool
        Show bars and lines on stderr.
    **options
        The command's other options, such as ``ways``, ``strengths``, ``retrigger``.

    Returns
    -------
    RepairFindings
        ``found.outcome``, ``found.file`` in output_dir, ``found.before.copies``, ``found.after.copies``, ``found.proof``.

    Raises
    ------
    InputError
        If an input or an option is wrong; before anything is sampled.

    Examples
    --------
    >>> from rotescope import finetune, repair
    >>> lora = finetune("photos", "style", lora=True, rank=4, max_train_steps=2, train_batch_size=8)
    >>> found = repair(model, lora, "repaired", quantiles=[0.25, 0.5])
    >>> found.outcome, [trial.file for trial in found.trials]
    ('undecided', ['base-anchored-0.25.safetensors', 'base-anchored-0.5.safetensors'])
    """
    with run_place(output_dir) as (folder, kept), silenced(not progress):
        given = {"model": str(model), "lora": lora_names(lora), "output_dir": str(folder), "fail_on": several_of(fail_on),
                 "train_data": data_on_disk(train_data, Path(kept.name) / "train.parquet") or "",
                 "heldout_data": data_on_disk(heldout_data, Path(kept.name) / "heldout.parquet"),
                 "seeds": tuple(map(own_number, seeds))}
        found = run_repair(config_with(RepairConfig, given, options))
    shown = folder / ("after" if found.after else "before") / "samples"
    return replace(found, report=report_from(found.report, shown, kept)) if found.report else found
