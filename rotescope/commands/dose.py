"""The dose-response curve: how often an image is copied that was shown 1, 2, 4, … times an epoch, with and without mitigations.

    rotescope dose --output_dir runs/dose
    rotescope dose --mitigation none og-stp --train_mitigation mem_ratio random_token_addition=0.4 deduplication
    rotescope dose --pretrained_model_name_or_path MODEL --train_data_dir IMAGES --recipe mine.yaml --doses 1 8 64 --images 8

Fine-tunes once for each training seed, and again for each training mitigation, on a plan with canaries at every dose beside as
many controls of like captions; samples the captions of both; scores the copies. Writes dose.json, dose.png and dose.md beside
the checkpoints and samples. A run that was stopped stays beside output_dir and goes on under --resume: what is finished stays.
"""
import json
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from rich.console import Console

from rotescope.commands import plots
from rotescope.commands.dose_plan import jobs, recipe_of
from rotescope.commands.finetune import finetune
from rotescope.common.errors import InputError, exit_cleanly
from rotescope.common.models import find_model, load_pipeline
from rotescope.common.outputs import check_output, folder_sha256, versions, write_json
from rotescope.common.progress import progress_bars
from rotescope.common.settings import parse, plain
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.readers.quarantine import show_quarantined
from rotescope.datasets.readers.sources import read_source
from rotescope.evaluate.descriptors.registry import get_descriptor
from rotescope.evaluate.inputs.samples import read_samples
from rotescope.evaluate.options import Measuring
from rotescope.evaluate.quality.alignment import find_alignment, get_alignment
from rotescope.evaluate.report.findings import make_layers
from rotescope.evaluate.report.per_image import measure
from rotescope.evaluate.statistics.dose_response import Outcome, caption, curves_of, markdown
from rotescope.mitigate.prompts.prompt import prompts_of
from rotescope.mitigate.sampling.options import check_sampling
from rotescope.mitigate.sampling.resumable_folder import resumable_folder
from rotescope.mitigate.sampling.sampler import sample_to_folder
from rotescope.train.engine.job import EMBEDDED, check


@dataclass(frozen=True)
class DoseConfig:
    output_dir: str = "runs/dose"
    """dose.json, dose.png, dose.md, checkpoints and samples go here"""
    pretrained_model_name_or_path: str = str(EMBEDDED["pretrained_model_name_or_path"])
    """folder of a Stable Diffusion 1 or 2 model in diffusers' layout, or its name on the hub"""
    train_data_dir: str = str(EMBEDDED["train_data_dir"])
    """captioned images, as rotescope finetune takes them"""
    recipe: str | None = None
    """YAML of rotescope finetune that says how to train; the demo's for the embedded model and data, else finetune's defaults"""
    max_train_steps: int | None = None
    """fine-tuning steps, if not the recipe's"""
    doses: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """copies of a canary in an epoch"""
    images: int = 4
    """canaries at each dose, and as many controls"""
    train_seeds: tuple[int, ...] = (0, 1, 2)
    """one fine-tune each, with canaries of its own"""
    mitigation: tuple[str, ...] = ("none",)
    """sample the plain fine-tunes under these, named as for rotescope generate: a curve each"""
    train_mitigation: tuple[str, ...] = ()
    """more fine-tunes, a curve each: caption perturbations by name, rand_noise_lam, mixup_noise_lam, hard_threshold, mem_ratio,
    each perhaps with =VALUE; several_captions; deduplication"""
    seeds: tuple[int, ...] = (0, 1)
    """one image a caption and a seed"""
    guidance_scale: float = 7.5
    """while sampling"""
    num_inference_steps: int = 25
    """denoising steps"""
    batch_size: int = 64
    """images at a time"""
    descriptor: str = "auto"
    """how copies are told, as in rotescope score"""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """where the model samples"""
    overwrite: bool = False
    """replace output_dir"""
    resume: bool = False
    """go on with the run that was stopped, or start it; the settings must be the same"""


def check_config(config):
    """-> list of Job, Source. InputError, before anything is trained, on what would stop the run later."""
    check_output(config.output_dir, config.overwrite, min_free_mb=200, inputs=(
        config.pretrained_model_name_or_path, config.train_data_dir, config.recipe, config.descriptor, *config.mitigation))
    check_sampling(config)
    if config.images < 1 or not config.doses or min(config.doses) < 1 or list(config.doses) != sorted(set(config.doses)):
        raise InputError("dose needs one image or more at each of --doses, and these rising from 1 or more")
    if not config.train_seeds or len(set(config.train_seeds)) < len(config.train_seeds):
        raise InputError("dose needs --train_seeds, each named once")
    if PartialState().num_processes > 1:
        raise InputError("rotescope dose works in one process: start it without accelerate launch")
    find_model(config.pretrained_model_name_or_path)
    get_descriptor(config.descriptor)
    source = read_source(config.train_data_dir)
    work = jobs(config, source.manifest)
    check(replace(work[0].config, train_data_dir=config.train_data_dir, output_dir=config.output_dir, overwrite=True))
    return work, source


def dose(config):
    """Fine-tune, sample, score and draw -> what dose.json says."""
    work, source = check_config(config)
    about = {"config": plain(config), "recipe": plain(recipe_of(config)), "runs": [job.about for job in work],
             "hashes": {"model": folder_sha256(find_model(config.pretrained_model_name_or_path))}}
    with resumable_folder(config.output_dir, about, PartialState(), overwrite=config.overwrite, resume=config.resume) as draft:
        for number, job in enumerate(work, 1):
            _say(f"{number}/{len(work)}: {job.arm.name or 'plain fine-tune'}, training seed {job.config.seed}")
            _train(job, draft / job.folder, draft / "cache")
            _sample(config, job, draft / job.folder)
        left_out = [asdict(q) for q in source.quarantined]
        found = about | {"versions": versions(), "left_out": left_out} | _score(config, work, draft)
        plots.draw_dose(found["curves"], caption(found), found["chance"], draft / "dose.png")
        (draft / "dose.md").write_text(markdown(found), encoding="utf-8")
        write_json(draft / "dose.json", found)
        shutil.rmtree(draft / "cache", ignore_errors=True)
    show_quarantined(source.quarantined, Path(config.output_dir) / "dose.json", source.unused)
    return found


def _train(job, folder, cache):
    """Unless it is done already. Latents and embeddings serve all runs."""
    if (folder / "checkpoint" / "rotescope.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    job.manifest.save(folder / "plan.parquet")
    finetune(replace(job.config, train_data_dir=str(folder / "plan.parquet"), output_dir=str(folder / "checkpoint"),
                     cache_dir=job.config.cache_dir or str(cache), resume_from_checkpoint="latest"))  # of a killed dose


def _sample(config, job, folder):
    """The batches that are there already stay."""
    if (folder / "samples" / "run.json").exists():
        return
    checkpoint, prompts = folder / "checkpoint", prompts_of(job.plan)
    pipe = load_pipeline(*((config.pretrained_model_name_or_path, checkpoint) if job.config.lora else (checkpoint,)))
    (folder / "samples").mkdir(exist_ok=True)
    with progress_bars({method: len(prompts) * len(config.seeds) for method in job.arm.methods}) as advance:
        sample_to_folder(pipe.to(config.device), prompts, job.arm.methods, config.seeds, folder / "samples", on_sample=advance,
                         about={"model": str(job.folder / "checkpoint"), "versions": versions()}, batch_size=config.batch_size,
                         resolution=job.config.resolution, guidance_scale=config.guidance_scale,
                         num_inference_steps=config.num_inference_steps)


def _score(config, work, draft):
    """-> the curves and what they were measured with. All plans have the same images, so one index serves."""
    folders = [read_samples(draft / job.folder / "samples") for job in work]
    aligner = get_alignment(find_alignment(find_model(config.pretrained_model_name_or_path)))
    with progress_bars({"training": len(work[0].plan), "generated": sum(len(s.records) for s in folders)}) as advance:
        how = Measuring(descriptor=config.descriptor, exact="none")
        layers = make_layers(folders[0].side, work[0].plan, None, None, how, advance)
        measured = [measure(samples, layers, job.plan, aligner, partial(advance, "generated"))
                    for job, samples in zip(work, folders, strict=True)]
    outcomes = [o for run in zip(work, folders, measured, strict=True) for o in _outcomes(draft, *run)]
    layer = layers["descriptor"]
    return {"curves": curves_of(outcomes), "descriptor": layer.index.descriptor.name, "copy_threshold": layer.threshold,
            "threshold_rule": layer.rule, "chance": layer.chance, "alignment_metric": aligner and aligner.label,
            **{name: plain(config)[name] for name in ("doses", "images", "train_seeds", "seeds")}}


def _outcomes(draft, job, samples, measured):
    """-> an Outcome for each image."""
    copies = {e.image_id: e.copies for e in job.plan}
    doses = {e.image_id: copies[e.matched or e.image_id] for e in job.plan if e.group}
    served = {e.image_id: e.served for e in Manifest.load(draft / job.folder / "checkpoint/manifest.parquet")}
    for r, copied, own, alignment in zip(samples.records, measured.copied, measured.own_copied, measured.alignment, strict=True):
        yield Outcome(job.arm.curve(r.method), job.config.seed, doses[r.image_id], r.group, bool(copied), bool(own),
                      float(alignment), served[r.image_id])


def _say(line):
    Console(stderr=True).print(f"[bold]{line}[/]", highlight=False)


@exit_cleanly
def main(argv=None):
    config = parse(DoseConfig, sys.argv[1:] if argv is None else argv, prog="rotescope dose", description=__doc__)
    found = dose(config)
    Console(stderr=True).print(markdown(found), markup=False, highlight=False, soft_wrap=True)
    print(json.dumps({"dose": config.output_dir, "curves": {name: [p["duplicated"]["copy_rate"] for p in curve["points"]]
                                                            for name, curve in found["curves"].items()}}))


if __name__ == "__main__":
    main()
