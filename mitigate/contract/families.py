"""The pipelines that mitigations know: which family one is of, which denoiser it has, how it is asked for guidance."""
import re

from rotescope.common.errors import InputError

FAMILIES = {  # the head of a class's name
    "sdxl": "StableDiffusionXL", "sd3": "StableDiffusion3", "sd": "StableDiffusion", "pixart": "PixArt(Alpha|Sigma)",
    "flux": "Flux",
}
BINNED = (32, 64, 128, 256)  # latents a side
VARIANTS = "(ControlNet(Union)?|Adapter)?(Img2Img|Inpaint(ing)?|Depth2Img|Upscale)?Pipeline"  # and its tail


def family(pipe):
    """'sd', 'sdxl', 'sd3', 'pixart', 'flux', by the pipeline's class or one that it is derived from; or 'other'.

    The others are refused: see adapters/compatibility.py.
    """
    names = [kind.__name__ for kind in type(pipe).__mro__]
    return next((kind for kind, head in FAMILIES.items() if any(re.fullmatch(head + VARIANTS, name) for name in names)), "other")


def denoiser_of(pipe):
    """The UNet or transformer of a pipeline; InputError where there is neither."""
    parts = (getattr(pipe, name, None) for name in ("unet", "transformer"))
    denoiser = next((part for part in parts if part is not None), None)  # a compiled one has no truth value
    if denoiser is None:
        raise InputError(f"{type(pipe).__name__} has neither a unet nor a transformer: there is nothing to mitigate")
    return denoiser


def guidance_arguments(pipe, n, scale):
    """The arguments that ask a pipeline for n images under guidance by `scale`: FLUX names it otherwise than the rest. PixArt's
    pipeline fits sides to tables that it has for latents of BINNED alone, and stops at others unless it is told not to."""
    if family(pipe) == "flux":
        return {"true_cfg_scale": scale, "negative_prompt": [""] * n}
    unfit = family(pipe) == "pixart" and denoiser_of(pipe).config.sample_size not in BINNED
    return {"guidance_scale": scale} | ({"use_resolution_binning": False} if unfit else {})
