"""The prediction gaps of ordinary prompts over the first steps, measured once for a model."""
from dataclasses import replace
from pathlib import Path

import torch

from rotescope.common.errors import InputError
from rotescope.common.outputs import check_apart, write_json
from rotescope.common.progress import progress_bars
from rotescope.common.settings import plain
from rotescope.mitigate.adapters.pipeline_hook import mitigated
from rotescope.mitigate.contract.families import guidance_arguments, two_branch_scale
from rotescope.mitigate.contract.mitigation import same_timestep
from rotescope.mitigate.methods.calibrated_transition import Calibration, check_ordinary
from rotescope.mitigate.prompts.prompt import load_prompts
from rotescope.mitigate.sampling.jobs import batches
from rotescope.mitigate.sampling.options import check_sampling
from rotescope.models.pipelines import check_model, open_model


def check_calibration(config):
    """Raise InputError for whatever would stop the run later."""
    file = Path(config.output_file)
    if file.exists() and not config.overwrite:
        raise InputError(f"{file} exists: name another file or pass --overwrite")
    if not file.absolute().parent.is_dir():
        raise InputError(f"{file.parent} is no folder: name a file in one that exists")
    check_apart(file, (*config.model_inputs, config.prompts))
    check_model(config)
    check_sampling(config)
    if not 1 <= config.watch <= config.num_inference_steps:
        raise InputError(f"watch={config.watch}: give a number of steps from 1 to num_inference_steps")


def first_gaps(pipe, prompts, seeds, *, watch, guidance_scale, num_inference_steps, batch_size=64, on_image=lambda n: None):
    """-> gaps (images, watch) as lists, and the timesteps, of the first distinct timesteps of plain guidance."""
    gaps, timesteps = [], []
    pipe.set_progress_bar_config(disable=True)
    for batch in batches(prompts, seeds, batch_size):
        with mitigated(pipe, "none") as run:
            pipe([prompts[i].text for i, _, _ in batch], **guidance_arguments(pipe, len(batch), guidance_scale),
                 num_inference_steps=num_inference_steps,
                 generator=[torch.Generator().manual_seed(seed) for _, _, seed in batch], output_type="latent",
                 callback_on_step_end=stop_after(watch))
        gaps += [row[:watch] for row in run.prediction_gaps]
        timesteps = run.timesteps[:watch]
        on_image(len(batch))
    return gaps, timesteps


def stop_after(watch):
    """A callback that ends the denoising loop once `watch` distinct timesteps have passed."""
    last, passed = torch.inf, 0

    def callback(pipe, index, timestep, tensors):
        nonlocal last, passed
        passed, last = passed + (not same_timestep(float(timestep), last)), float(timestep)
        pipe._interrupt = passed >= watch
        return tensors
    return callback


def calibrate(config):
    """Measure as a CalibrateConfig says -> the calibration's file."""
    check_calibration(config)
    prompts = load_prompts(config.prompts, config.groups, config.max_prompts)
    check_ordinary(len(prompts) * len(config.seeds))
    pipe = open_model(config)
    config = replace(config, guidance_scale=two_branch_scale(pipe, config.guidance_scale))
    settings = {k: getattr(config, k) for k in ("watch", "guidance_scale", "num_inference_steps", "batch_size")}
    with progress_bars({"ordinary": len(prompts) * len(config.seeds)}) as advance:
        done = 0

        def on_image(n):
            nonlocal done
            done += n
            advance("ordinary", to=done)
        gaps, timesteps = first_gaps(pipe, prompts, config.seeds, on_image=on_image, **settings)
    known = Calibration.of(gaps, timesteps, config.guidance_scale, config.num_inference_steps)
    write_json(config.output_file, known.as_json() | {"config": plain(config)})
    return Path(config.output_file)
