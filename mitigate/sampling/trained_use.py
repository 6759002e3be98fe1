"""A LoRA sampled as it was trained: what its header says stands where the user said nothing."""
import math
from dataclasses import replace

from rotescope.common.console import say
from rotescope.common.errors import InputError
from rotescope.mitigate.sampling.picture_size import BUCKETS, MOST_PIXELS
from rotescope.models.adapters.header import read_header
from rotescope.models.model_files import find_lora, lora_names

CHUNK = 75   # tokens that CLIP reads at once


def sampled_as_trained(config, with_pictures=True):
    """A SamplingOptions -> the same with what the header of its first LoRA says: size, skipped layers, length of captions. What
    is taken from it is said in a line."""
    names = lora_names(config.lora)
    header = _header_of(names[0]) if names else None
    if header is None:
        return config
    said = {"resolution": _resolution(header, with_pictures), "clip_skip": _clip_skip(header),
            "max_token_length": header.max_token_length if (header.max_token_length or 0) > CHUNK else None}
    taken = {name: value for name, value in said.items() if value is not None and getattr(config, name) is None}
    if taken:
        words = ", ".join(f"--{name} {value}" for name, value in taken.items())
        say(f"note: sampled as the header of {names[0]} says it was trained: {words}")
    return replace(config, **taken)


def _header_of(name):
    try:
        return read_header(find_lora(name))
    except InputError:   # said where the LoRA is opened
        return None


def _resolution(header, with_pictures):
    """"512x768"; buckets of that area where pictures of several shapes were trained on. None of a size that no model draws."""
    if header.resolution is None or any(side % 8 or not 8 <= side <= MOST_PIXELS for side in header.resolution):
        return None
    width, height = header.resolution
    in_buckets = with_pictures and len(header.buckets) > 1
    return f"{BUCKETS}:{math.isqrt(width * height)}" if in_buckets else f"{width}x{height}"


def _clip_skip(header):
    """Trainers of SDXL write it, and always take the last layer but one."""
    return header.clip_skip if header.clip_skip and header.clip_skip > 1 and not header.is_sdxl else None
