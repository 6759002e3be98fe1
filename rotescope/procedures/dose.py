"""The dose-response curve: fine-tune, sample and score at every dose, with and without mitigations."""
import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from accelerate import PartialState

from rotescope.common.console import say
from rotescope.common.errors import InputError
from rotescope.common.outputs import check_output, folder_sha256, versions, write_json
from rotescope.common.progress import progress_bars
from rotescope.common.settings import plain
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.readers.quarantine import show_quarantined
from rotescope.datasets.readers.sources import read_source
from rotescope.datasets.trainers.data_options import data_options
from rotescope.evaluate.descriptors.registry import get_descriptor
from rotescope.evaluate.inputs.samples import read_samples
from rotescope.evaluate.measurement.layers import make_layers
from rotescope.evaluate.measurement.per_image import measure
from rotescope.evaluate.options import Measuring
from rotescope.evaluate.quality.recognition import chosen_alignment
from rotescope.evaluate.statistics.dose_response import Outcome, curves_of, dose_caption, dose_table
from rotescope.mitigate.prompts.prompt import caption_prompts
from rotescope.mitigate.sampling.options import check_sampling
from rotescope.mitigate.sampling.resumable_folder import resumable_folder
from rotescope.mitigate.sampling.sampler import sample_to_folder
from rotescope.models.memory import check_memory
from rotescope.models.model_files import find_model
from rotescope.models.pipelines import chosen_device, open_checkpoint
from rotescope.procedures.dose_plan import dose_runs, recipe_of
from rotescope.procedures.finetune import run_finetune
from rotescope.procedures.plots.dose import draw_dose
from rotescope.train.engine.job import check_job


def check_config(config):
    """-> list of DoseRun, Source. InputError, before anything is trained, on what would stop the run later."""
    check_output(config.output_dir, config.overwrite, min_free_mb=200, inputs=(
        config.pretrained_model_name_or_path, config.train_data, config.recipe), texts=(config.descriptor, *config.mitigation))
    check_sampling(config)
    check_memory(config, chosen_device(config.device))
    if config.images < 1 or not config.doses or min(config.doses) < 1 or list(config.doses) != sorted(set(config.doses)):
        raise InputError("dose needs one image or more at each of --doses, and these rising from 1 or more")
    if not config.train_seeds or len(set(config.train_seeds)) < len(config.train_seeds):
        raise InputError("dose needs --train_seeds, each named once")
    if PartialState().num_processes > 1:
        raise InputError("rotescope dose works in one process: start it without accelerate launch")
    find_model(config.pretrained_model_name_or_path)
    get_descriptor(config.descriptor)
    source = read_source(config.train_data, options=data_options(config))
    work = dose_runs(config, source.manifest)
    check_job(replace(work[0].config, **vars(data_options(config)), train_data=config.train_data, output_dir=config.output_dir,
                      overwrite=True))
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
        draw_dose(found["curves"], dose_caption(found), found["chance"], draft / "dose.png")
        (draft / "dose.md").write_text(dose_table(found).markdown(), encoding="utf-8")
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
    run_finetune(replace(job.config, train_data=str(folder / "plan.parquet"), output_dir=str(folder / "checkpoint"),
                     cache_dir=job.config.cache_dir or str(cache), resume_from_checkpoint="latest"))  # of a killed dose


def _sample(config, job, folder):
    """The batches that are there already stay."""
    if (folder / "samples" / "run.json").exists():
        return
    checkpoint, prompts = folder / "checkpoint", caption_prompts(job.plan)
    pipe = open_checkpoint(config, *((config.pretrained_model_name_or_path, checkpoint) if job.config.lora else (checkpoint,)))
    (folder / "samples").mkdir(exist_ok=True)
    with progress_bars({method: len(prompts) * len(config.seeds) for method in job.arm.methods}) as advance:
        sample_to_folder(pipe, prompts, job.arm.methods, config.seeds, folder / "samples", on_sample=advance,
                         about={"model": str(job.folder / "checkpoint"), "versions": versions()}, batch_size=config.batch_size,
                         resolution=job.config.resolution, guidance_scale=config.guidance_scale,
                         num_inference_steps=config.num_inference_steps)


def _score(config, work, draft):
    """-> the curves and what they were measured with. All plans have the same images, so one index serves."""
    folders = [read_samples(draft / job.folder / "samples") for job in work]
    aligner, notes = chosen_alignment("auto", find_model(config.pretrained_model_name_or_path), list(work[0].plan))
    for note in notes:
        say(f"note: {note}")
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
                      float(alignment), served[r.image_id], r.image_id)


def _say(line):
    say(line, style="bold")
