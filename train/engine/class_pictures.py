"""Class pictures for prior preservation (DreamBooth): read where there are some, drawn with the base where there are none.

They are trained on beside the training pictures, and stand in no manifest: an audit does not take them for training pictures.
"""
import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from rotescope.common.console import say
from rotescope.common.errors import InputError
from rotescope.common.outputs import is_within
from rotescope.common.whole_files import whole_file
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.readers.sources import load_source
from rotescope.datasets.trainers.data_options import DataOptions, data_options, for_other_pictures
from rotescope.train.tracking.validation import exact_decoding, exact_square, visiting


def options_beside_class(config):
    """-> how the training pictures are read: class pictures in a folder among them are set aside."""
    options, inner = data_options(config), config.class_data
    among = inner and Path(inner).is_dir() and is_within(inner, config.train_data) and not is_within(config.train_data, inner)
    return replace(options, class_data_dir=inner) if among and not options.class_data_dir else options


def read_class_pictures(config, training):
    """-> the Manifest of --class_data, or None if there is none. InputError if one of them cannot be used, or is a training
    picture: that would be shown more often than the manifest says."""
    if not config.class_data:
        return None
    options = replace(for_other_pictures(data_options(config)), instance_prompt=config.class_prompt)
    try:
        found = load_source(config.class_data, options=options)
    except InputError as error:
        hint = "" if config.class_prompt else ", or give one to all with --class_prompt" if "no caption" in str(error) else ""
        raise InputError(f"--class_data: {error}{hint}") from error
    trained = {e.sha256 for e in training}
    both = [e for e in found if e.sha256 in trained]
    if both:
        raise InputError(f"--class_data: {len(both)} of the pictures are training pictures, too, the first {both[0].name}: take "
                         "them out of one of the two")
    return found


def drawn_class_pictures(job, accelerator):
    """-> the Manifest of the pictures that --num_class_images asks for, or None. What lacks of them is drawn, each picture from
    a seed of its own, each process a share; a run that is resumed finds them."""
    config = job.config
    if not config.num_class_images:
        return None
    folder = folder_of_drawn(job)
    files = [folder / f"{i:05d}.png" for i in range(config.num_class_images)]
    missing = [i for i, file in enumerate(files) if not file.exists()]
    if missing and accelerator.is_main_process:
        say(f"note: the base draws {len(missing)} class pictures of {config.class_prompt!r} into {folder}")
    accelerator.wait_for_everyone()  # all have looked before any of them draws
    _draw(job, accelerator, files, missing[accelerator.process_index::accelerator.num_processes])
    accelerator.wait_for_everyone()
    _draw(job, accelerator, files, [i for i, file in enumerate(files) if not file.exists()])  # if processes share no disk
    found = load_source(folder, options=DataOptions(instance_prompt=config.class_prompt))
    return Manifest(tuple(e for e in found if Path(e.file).name in {file.name for file in files}))


def folder_of_drawn(job):
    """-> OUTPUT_DIR-class-…, the same for the same model, prompt, seed and size: others draw into another."""
    config, out = job.config, Path(job.config.output_dir).absolute()
    what = f"{job.hashes['base']}\n{config.class_prompt}\n{config.seed}\n{job.preprocessing.resolution}"
    return out.with_name(f"{out.name}-class-{hashlib.sha256(what.encode()).hexdigest()[:8]}")


@torch.no_grad()
def _draw(job, accelerator, files, numbers):
    """The pictures of these numbers, as diffusers' scripts draw them: by a call of the pipeline with its own settings."""
    if not numbers:
        return
    pipe, config, device = job.pipe, job.config, accelerator.device
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module) and part.device.type != device.type]
    pipe.set_progress_bar_config(disable=True)
    files[0].parent.mkdir(parents=True, exist_ok=True)
    job.predictor.eval()
    try:
        with visiting(parts, device), accelerator.autocast(), exact_decoding(pipe.vae):
            for i in numbers:
                generator = torch.Generator().manual_seed(config.seed + i)
                image, = pipe(prompt=config.class_prompt, generator=generator,
                              **exact_square(pipe, job.preprocessing.resolution)).images
                with whole_file(files[i]) as draft:
                    image.save(draft, "PNG")
    finally:
        job.predictor.train()
