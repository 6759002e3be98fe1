"""What several tests of mitigations run: latents of tiny pipelines, and a calibration on disk."""
import json

import torch
from tiny import SETTINGS

from rotescope.mitigate.methods.calibrated_transition import Calibration

PROMPTS = ["a cat on a blue background", "a bus on a red background", "a frog and a pig on a pink background"]
STEPS = 6


def images(pipe, prompts=PROMPTS, rows=None, kind="sd", scale=7.5, **settings):
    """-> latents (n, …), before decoding, so that a comparison is exact; image i starts from the noise of seed i."""
    noise = [torch.Generator().manual_seed(i) for i in (range(len(prompts)) if rows is None else rows)]
    name = "true_cfg_scale" if kind == "flux" else "guidance_scale"
    settings = {"num_inference_steps": STEPS, "generator": noise, "output_type": "latent", name: scale,
                **SETTINGS[kind], **settings}
    if kind == "flux" and isinstance(settings["negative_prompt"], str):
        settings["negative_prompt"] = [settings["negative_prompt"]] * len(prompts)
    return pipe(prompts, **settings).images


def calibration(file, gaps, timesteps, scale=7.5, steps=10):
    """Gaps (images, steps) of ordinary images -> the file that rotescope calibrate would write of them."""
    file.write_text(json.dumps(Calibration.of(gaps, timesteps, scale, steps).as_json()))
    return file
