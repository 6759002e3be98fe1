"""All the small pipelines by name, and what each has to be told when it is called."""
from functools import wraps

import numpy as np
import tiny
import torch
from families import tiny_flux_relatives as relatives
from families import tiny_language_models as languages
from families import tiny_transformers as first
from tiny import TINY, TOKENS, seeded

MORE_FAMILIES = {
    "z-image": first.z_image, "flux2-klein": first.flux2_klein, "qwen-image": first.qwen_image, "chroma": first.chroma,
    "sana": first.sana, "pixart-sigma": first.pixart_sigma,
    "lumina2": languages.lumina2, "aura-flow": languages.aura_flow, "cogview4": languages.cogview4, "hidream": languages.hidream,
    "hunyuan-dit": languages.hunyuan_dit, "krea2": languages.krea2, "ideogram4": languages.ideogram4,
    "ernie-image": languages.ernie_image,
    "prx": relatives.prx, "ovis-image": relatives.ovis_image, "longcat-image": relatives.longcat_image, "bria": relatives.bria,
    "hunyuan-image": relatives.hunyuan_image, "flux2": relatives.flux2, "qwen-image-21": relatives.qwen_image_21,
    "nucleus-moe": relatives.nucleus_moe,
}
SHORT, PLAIN, EMPTY = {"max_sequence_length": TOKENS}, {"use_resolution_binning": False}, {"negative_prompt": ["", ""]}
SETTINGS = {
    "z-image": {"max_sequence_length": 96}, "flux2-klein": {"max_sequence_length": 96}, "qwen-image": EMPTY, "chroma": SHORT,
    "sana": SHORT | PLAIN | {"complex_human_instruction": []}, "pixart-sigma": SHORT | PLAIN | {"clean_caption": False},
    "lumina2": {"max_sequence_length": 64, "system_prompt": ""}, "aura-flow": SHORT, "cogview4": SHORT, "hidream": SHORT,
    "hunyuan-dit": PLAIN, "krea2": {"max_sequence_length": 256},
    "ideogram4": {"max_sequence_length": 64, "guidance_schedule": None},
    "prx": PLAIN | {"tokenizer_max_length": TOKENS}, "longcat-image": EMPTY | {"enable_prompt_rewrite": False},
    "bria": SHORT, "hunyuan-image": EMPTY, "flux2": {"max_sequence_length": 256}, "qwen-image-21": EMPTY,
}
GUIDANCE = {  # the argument, how strong, and the number that switches it off
    "z-image": ("guidance_scale", 4.0, 0.0), "krea2": ("guidance_scale", 4.0, 0.0), "qwen-image": ("true_cfg_scale", 4.0, 1.0),
    "qwen-image-21": ("true_cfg_scale", 4.0, 1.0)}
SIDES = {"sana": 32, "lumina2": 32, "hunyuan-dit": 32, "qwen-image-21": 32}


def more_family(name):
    return seeded(MORE_FAMILIES[name])


def images(pipe, name, prompt=("a cat on a red background", "a bus"), guided=True, **more):
    """Two pictures of a small pipeline in two steps, as an array."""
    if name == "prx" and len(prompt) > 1:  # it gives its network a time a branch, not a time a row: guided, it takes one prompt
        return np.concatenate([images(pipe, name, [words], guided, **more) for words in prompt])
    scale, on, off = GUIDANCE.get(name, ("guidance_scale", 4.0, 1.0))
    side = SIDES.get(name, 16)
    if name == "hidream":
        pipe.default_sample_size = 8  # it makes every picture as large as this one, and does not save the number
    if name == "hunyuan-image":
        pipe.tokenizer_max_length = 256  # it fills every text up to so many, and does not save the number either
        pipe.guider = pipe.guider.new(guidance_scale=on if guided else off)
        scale = "distilled_guidance_scale"
    told = SETTINGS.get(name, {}) | {scale: on if guided else off} | more
    return pipe(prompt=list(prompt), num_inference_steps=2, height=side, width=side, output_type="np",
                generator=torch.Generator().manual_seed(1), **told).images


def small_family(name):
    """A small pipeline, also of the first five families, that is told by itself what its size wants, its sides among it."""
    pipe = TINY[name]() if name in TINY else more_family(name)
    kind, side = type(pipe), SIDES.get(name, 16)
    own = {"height": side, "width": side} | SETTINGS.get(name, tiny.SETTINGS.get(name, {}))
    own.pop("negative_prompt", None)
    if name == "hidream":
        pipe.default_sample_size = 8

    @wraps(kind.__call__)
    def call(self, *args, **given):
        return kind.__call__(self, *args, **{**own, **given})
    pipe.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    pipe.set_progress_bar_config(disable=True)
    return pipe
