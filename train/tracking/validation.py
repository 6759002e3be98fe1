"""What can be seen of a training while it goes on: numbers at the trackers, validation images."""
from contextlib import contextmanager
from datetime import timedelta
from inspect import signature
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, ProjectConfiguration, gather_object
from diffusers.utils import make_image_grid

from rotescope.common.errors import InputError
from rotescope.common.outputs import sha256
from rotescope.common.settings import plain
from rotescope.common.whole_files import whole_file
from rotescope.train.checkpoints.output_folder import RECORD

PATIENCE = timedelta(days=1)  # of processes that wait while one encodes, measures, shows images or uploads; NCCL has 10 minutes


def accelerator_of(config, some_unused=False):
    """-> the Accelerator of a run; its trackers are not open yet. InputError on a precision that is not there.

    some_unused: whether the loss leaves some of the denoiser's weights without a gradient.
    """
    out = Path(config.output_dir)
    project = ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "logs"))
    # the last layer of SDXL's text encoders is not used
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=config.train_text_encoder or some_unused),
                InitProcessGroupKwargs(timeout=PATIENCE)]
    accelerator = Accelerator(mixed_precision=config.mixed_precision, log_with=config.report_to, project_config=project,
                              gradient_accumulation_steps=config.gradient_accumulation_steps, kwargs_handlers=handlers)
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":  # Accelerate would train in float32, unsaid
        raise InputError("--mixed_precision fp16 needs a GPU, and there is none: take bf16 or no")
    return accelerator


@contextmanager
def tracked(accelerator, config):
    """The trackers, if any, are open."""
    if config.report_to:
        shown = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in plain(config).items() if k != "hub_token"}
        accelerator.init_trackers(config.tracker_project_name, config=shown)
    try:
        yield
    finally:
        if config.report_to:
            accelerator.end_training()


def report(run, result):
    """What is due at the trackers after a step."""
    config = run.job.config
    if config.report_to:
        run.accelerator.log({"loss": result.loss, "lr": result.lr}, step=result.step)
    if config.validation_prompts and (result.step % config.validation_steps == 0 or result.step == run.total):
        if run.accelerator.is_main_process:
            show(run, validation_images(run))
        run.accelerator.wait_for_everyone()


@torch.no_grad()
def validation_images(run):
    """-> PIL images, num_validation_images of each prompt in turn; number j of a prompt always starts from the same noise."""
    config, pipe, side = run.job.config, run.job.pipe, run.job.preprocessing.resolution
    seeds = [config.seed + j for j in range(config.num_validation_images)]
    pipe.set_progress_bar_config(disable=True)
    with sampling(run):
        return [pipe(prompt=prompt, num_inference_steps=25, **exact_square(pipe, side),
                     generator=torch.Generator().manual_seed(seed)).images[0]
                for prompt in config.validation_prompts for seed in seeds]


def exact_square(pipe, side):
    """-> what a call of the pipeline has to be told to draw a square of so many pixels, and no size that it prefers."""
    binned = "use_resolution_binning" in signature(pipe.__call__).parameters
    return {"height": side, "width": side} | ({"use_resolution_binning": False} if binned else {})


@contextmanager
def sampling(run):
    """The pipeline as it would sample now: the average if there is one, frozen parts beside the denoiser. Training feels nothing:
    what is drawn inside from torch's own generators is drawn again outside."""
    device = run.accelerator.device
    with (torch.random.fork_rng([device] if device.type == "cuda" else []), run.averaged(), visiting(run.job.frozen(), device),
          run.accelerator.autocast(), exact_decoding(run.job.pipe.vae)):
        yield run.job.pipe


@contextmanager
def exact_decoding(vae):
    """The VAE decodes in its own precision, whatever autocast says: SDXL's overflows in float16 and would show black pictures."""
    decode = vae.decode

    def exactly(latents, *args, **kwargs):
        with torch.autocast(latents.device.type, enabled=False):
            return decode(latents.to(vae.dtype), *args, **kwargs)
    vae.decode = exactly
    try:
        yield
    finally:
        del vae.decode


def show(run, images):
    """OUTPUT_DIR/validation/step-….png, a row a prompt, and the single images at the trackers."""
    config = run.job.config
    file = Path(config.output_dir) / "validation" / f"step-{run.step:06d}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as draft:
        make_image_grid(images, len(config.validation_prompts), config.num_validation_images).save(draft, "PNG")
    for tracker in run.accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"validation": np.stack([np.asarray(i) for i in images])}, step=run.step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({"validation": images}, step=run.step)


@contextmanager
def visiting(parts, device):
    """Frozen parts on the accelerator, and then back where they were."""
    homes = [part.device for part in parts]
    for part in parts:
        part.to(device)
    try:
        yield
    finally:
        for part, home in zip(parts, homes, strict=True):
            part.to(home)


def check_agreed(job):
    """InputError, in every process, if they do not all see the same model, images and checkpoint: each would train on its own."""
    data = job.manifest.hash + (job.class_manifest.hash if job.class_manifest else "")
    seen = gather_object([(job.hashes["base"], data, job.resume and sha256(job.resume / RECORD))])
    names = ("model: see that --pretrained_model_name_or_path is one to all of them",
             "images: see that each of them can read the whole of --train_data and --class_data, and that nothing changes there",
             "checkpoint: put the one to resume from where each of them finds it")
    for of_each, name in zip(zip(*seen, strict=True), names, strict=True):
        if len(set(of_each)) > 1:
            raise InputError(f"the processes do not all read the same {name}")


