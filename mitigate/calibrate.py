"""Measure the prediction gaps of prompts that are known to be ordinary, for the mitigation dtp-calibrated.

    rotescope calibrate --model runs/model --prompts ordinary.txt --output_file c.json
    rotescope generate --model runs/model --prompts new.txt --output_dir s --mitigation none dtp-calibrated:calibration=c.json

Ordinary are prompts of which you know that the model does not replicate an image: captions of your own that are in no training
set, or held-out ones. A hundred images or more; only the first `watch` steps of each are sampled. The file holds for the model,
guidance_scale and number of steps that it was made with.
"""
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from rotescope.common.errors import InputError, exit_cleanly
from rotescope.common.model_options import ModelOptions
from rotescope.common.models import check_model, open_model
from rotescope.common.outputs import check_apart, write_json
from rotescope.common.progress import progress_bars
from rotescope.common.settings import parse, plain
from rotescope.mitigate.adapters.pipeline_hook import mitigated
from rotescope.mitigate.contract.mitigation import guided, same_timestep
from rotescope.mitigate.methods.calibrated_transition import Calibration
from rotescope.mitigate.prompts.prompt import load_prompts
from rotescope.mitigate.sampling.options import check_sampling
from rotescope.mitigate.sampling.sampler import batches


@dataclass(frozen=True)
class CalibrateConfig(ModelOptions):
    prompts: str
    """file of ordinary prompts, or a checkpoint's manifest.parquet"""
    output_file: str
    """the calibration, a JSON file"""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """one image a prompt and a seed"""
    watch: int = 4
    """how many of the first steps are looked at"""
    guidance_scale: float = 7.5
    """as it will be when sampling"""
    num_inference_steps: int = 50
    """as it will be when sampling"""
    batch_size: int = 64
    """images at a time"""
    groups: tuple[str, ...] = ("control",)
    """which prompts of a manifest that has a duplication plan"""
    max_prompts: int | None = None
    """take only so many prompts"""
    overwrite: bool = False
    """replace output_file"""


def check(config):
    """Raise InputError for whatever would stop the run later."""
    file = Path(config.output_file)
    if file.exists() and not config.overwrite:
        raise InputError(f"{file} exists: name another file or pass --overwrite")
    if not file.absolute().parent.is_dir():
        raise InputError(f"{file.parent} is no folder: name a file in one that exists")
    check_apart(file, (config.prompts, config.lora))
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
            pipe([prompts[i].text for i, _, _ in batch], **guided(pipe, len(batch), guidance_scale),
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
    """-> the calibration's file."""
    check(config)
    prompts = load_prompts(config.prompts, config.groups, config.max_prompts)
    pipe = open_model(config)
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


@exit_cleanly
def main(argv=None):
    config = parse(CalibrateConfig, sys.argv[1:] if argv is None else argv, prog="rotescope calibrate", description=__doc__)
    print(json.dumps({"calibration": str(calibrate(config))}))


if __name__ == "__main__":
    main()
