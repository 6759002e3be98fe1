"""A fine-tune from its options to the saved checkpoint: check, encode, train, save."""
import os
import time
from dataclasses import asdict
from pathlib import Path

import torch

from rotescope.common.console import say
from rotescope.common.errors import InputError, RunError
from rotescope.common.processes import alone_in, is_first_process, process_count
from rotescope.common.progress import progress_bars
from rotescope.datasets.plans.duplication import check_served
from rotescope.datasets.readers.quarantine import show_quarantined
from rotescope.models.pipelines import DTYPES
from rotescope.train.checkpoints.export import save_full, save_lora, save_record
from rotescope.train.checkpoints.hub_upload import open_hub, upload
from rotescope.train.checkpoints.output_folder import cache_of, checkpoints, clear_cache, clear_work, drop_later, result_folder
from rotescope.train.checkpoints.reloaded import check_saved
from rotescope.train.checkpoints.resume import restore, save_checkpoint
from rotescope.train.encodings.encode import encode
from rotescope.train.encodings.tensor_table import Share, drop_old_drafts
from rotescope.train.engine.class_pictures import drawn_class_pictures
from rotescope.train.engine.job import bucket_table, buckets_of, check_job
from rotescope.train.engine.run_state import batch_size, passes_of, start, total_steps
from rotescope.train.engine.sharding import check_sharding, rhythm, settle
from rotescope.train.options.limits import check_schedule
from rotescope.train.tracking.validation import accelerator_of, check_agreed, report, tracked, visiting


def train_model(config, on_step=None, progress=True, monitor=None):
    """Train as `config` says -> the checkpoint's folder.

    `on_step(StepResult)` is called after each step. `monitor(Job, say)` -> a function of the Run, which is called in every
    process before the first step and after each: where it is true, training ends. rotescope.finetune hands in the one that
    --monitor_steps asks for. Pictures that cannot be read are left out: announced before the first step, named at the end and in
    rotescope.json. InputError before anything expensive, RunError when the loss is no number.
    """
    job, repository = check_job(config), open_hub(config)
    with alone_in(config.output_dir):
        return _trained_whole(job, repository, on_step, progress, monitor)


def _trained_whole(job, repository, on_step, progress, monitor):
    """-> the checkpoint's folder."""
    started, config = time.time(), job.config
    watch = _watch(job, monitor, say if progress else _hush)
    size = batch_size(config, process_count())
    steps = total_steps(config, job.manifest, size, job.shapes)
    _check_length(job, steps, size)
    _announce(job, steps, size, progress)
    accelerator = accelerator_of(config, job.predictor.family.some_unused)
    check_sharding(accelerator, config)
    check_agreed(job)
    _announce_idle_cores(accelerator)
    if accelerator.is_main_process and not config.resume_from_checkpoint:
        clear_work(config.output_dir)
    with tracked(accelerator, config):
        run = _train(job, accelerator, on_step, watch, progress)
        about = {"processes": accelerator.num_processes, "steps": run.step, "losses": list(run.losses), "starts": run.starts,
                 "wall_seconds": round(time.time() - started, 1), **run.notes}
        with run.averaged():
            if accelerator.is_main_process:
                _save(run, about)
                warnings = [sentence for sentence in job.source.unused if not sentence.startswith("note: ")]
                show_quarantined(job.source.quarantined, Path(config.output_dir) / "rotescope.json", warnings)
        if accelerator.is_local_main_process:  # the files are mapped still, perhaps, and go when nobody has them any more
            clear_cache(config)
        if accelerator.is_main_process and repository:
            upload(job, repository)
        accelerator.wait_for_everyone()
    return Path(config.output_dir)


def _watch(job, monitor, say):
    """What is asked before the first step and after each whether to stop."""
    if not job.config.monitor_steps:
        return _hush
    if monitor is None:
        raise InputError("--monitor_steps needs a monitor: call rotescope.finetune, which hands one in")
    return monitor(job, say)


def _hush(*_):
    """Nothing is said, and nothing stops the run."""
    return False


def _train(job, accelerator, on_step, watch, progress):
    """-> the Run after its last step."""
    torch.backends.cuda.matmul.allow_tf32 |= job.config.allow_tf32
    size = batch_size(job.config, accelerator.num_processes)
    steps = total_steps(job.config, job.manifest, size, job.shapes)
    bars = {"reading images": len(job.manifest), "fine-tuning": steps}
    with progress_bars(bars, disable=not (progress and accelerator.is_main_process)) as advance:
        class_manifest = job.class_manifest or drawn_class_pictures(job, accelerator)
        encoded = _encode(job, job.manifest, accelerator, lambda done: advance("reading images", to=done), job.shapes, job.masks)
        classes = class_manifest and (class_manifest, _encode(job, class_manifest, accelerator,
                                                              shapes=buckets_of(class_manifest, job.buckets)))
        run = start(job, encoded, accelerator, classes)
        if job.resume:
            restore(run, job.resume)
        for result in _trained(run, watch):
            advance("fine-tuning", f"loss {result.loss:.4f}", to=result.step)
            if on_step:
                on_step(result)
    return run


def _check_length(job, steps, size):
    """InputError if a plan's copies need more samples than the run has; a warning if that is as asked, or if nothing repeats.
    InputError, too, if the learning rate's schedule does not fit into the run."""
    check_schedule(job.config, steps, size)
    try:
        check_served(job.manifest, passes_of(job.manifest, size, job.shapes).samples_in(steps))
    except InputError as error:
        if any(e.copies > 1 for e in job.manifest) and not job.config.partial_plan:
            raise InputError(f"{error}; --partial_plan true trains all the same, as for a trial of a few steps") from error
        if is_first_process():
            say(f"warning: {error}")


def _announce(job, steps, size, progress):
    """What the run does: how the data were understood, how often it shows the images, and which are left out."""
    if progress and is_first_process():
        for sentence in (s for s in job.source.unused if s.startswith("note: ")):
            say(sentence)
        epochs = passes_of(job.manifest, size, job.shapes).samples_in(steps) / job.manifest.copies
        copies = sorted({e.copies for e in job.manifest})
        shown = " to ".join(f"{epochs * c:,.1f}" for c in dict.fromkeys((copies[0], copies[-1])))
        of = f"up to {size}" if job.shapes else size
        say(f"{steps:,} steps of {of} samples: {epochs:,.1f} epochs, an image is shown about {shown} times")
        if job.shapes:
            say("note: pictures are cropped to " + ", ".join(f"{size} ({n})" for size, n in bucket_table(job).items()))
    if job.source.quarantined and is_first_process():
        say(f"warning: {len(job.source.quarantined):,} of the pictures cannot be trained on and are left out, the first: "
             f"{job.source.quarantined[0].reason}")


def _announce_idle_cores(accelerator):
    """On a CPU, `accelerate launch` may give each process a single thread if it is not told otherwise."""
    processes, cores = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), _cores()
    if accelerator.device.type == "cpu" and "ACCELERATE_MIXED_PRECISION" in os.environ and accelerator.is_main_process \
            and torch.get_num_threads() == 1 < cores // processes:
        say(f"note: this trains on {processes} of {cores} cores; accelerate launch --num_cpu_threads_per_process "
             f"{cores // processes} would use {cores // processes * processes}")


def _cores():
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _trained(run, watch):
    """The steps of a run, each followed by what is due after it, until the last, or until the watch says so."""
    every, limit = rhythm(run.accelerator, run.job.config)
    out = run.job.config.output_dir
    try:
        for result in () if watch(run) else run.steps():  # what is resumed may have reached its dose
            yield result
            report(run, result)
            stop = watch(run)  # before the checkpoint: what resumes from there finds all that was measured until then
            if every and run.step % every == 0:
                save_checkpoint(run, out, limit)
            if stop:
                break
    except RunError as error:
        kept = checkpoints(out)
        raise RunError(f"{error}; {kept[-1]} is the last good checkpoint" if kept else str(error)) from error
    settle(run.accelerator, run.model, run.job)


def _encode(job, manifest, accelerator, show=None, shapes=(), masks=()):
    """Latents and embeddings, on the CPU; VAE and text encoder visit the accelerator for it, each process encodes a share."""
    share = Share(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone)
    cache = cache_of(job.config)
    drop_old_drafts(cache)
    with visiting(job.frozen(), accelerator.device):
        return encode(manifest, job.pipe, job.preprocessing, job.hashes, cache, show,
                      texts=not job.config.train_text_encoder, share=share, shapes=shapes, masks=masks)


def _beside(run):
    """What the record says of class pictures, which stand in no manifest, so that no audit takes them for training pictures, and
    of buckets."""
    classes = {"class_pictures": {"images": len(run.prior.manifest), "manifest": run.prior.manifest.hash}} if run.prior else {}
    return classes | ({"buckets": bucket_table(run.job)} if run.job.shapes else {})


def _save(run, about):
    job, config = run.job, run.job.config
    with result_folder(config.output_dir, config.overwrite) as folder:
        weights = save_lora(job, folder) if config.lora else save_full(job, folder, DTYPES[config.save_dtype])
        about = {"kind": "lora" if config.lora else "full", "base": config.pretrained_model_name_or_path, "seed": config.seed,
                 **about, **_beside(run), "left_out": [asdict(q) for q in job.source.quarantined],
                 "hashes": {"base": job.hashes["base"]}}
        save_record(folder, config, job.manifest.with_served(run.served), weights, about)
        drop_later(config.output_dir, run.saved)
    check_saved(job, Path(config.output_dir))  # once it is in place: the check may want more memory than there is
