"""How large the images are: the model's own size, one that the user names, or the bucket of each prompt's own training picture.

Trainers do not crop pictures to squares: they sort them into *buckets*, shapes of about the same area whose sides are multiples
of 64 (kohya-ss/sd-scripts, --enable_bucket). A model is sampled as it was trained if a caption is drawn in its picture's bucket.
"""
import json
import re
from dataclasses import replace
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.datasets.images.buckets import bucket_grain, bucket_shapes, nearest_bucket

BUCKETS = "buckets"
MOST_PIXELS = 16_384   # a side


def parse_resolution(text):
    """None, 512, "512", "832x1216" (width × height), a pair, "buckets" or "buckets:1024" -> None, (width, height), or BUCKETS
    with the side of its square, None for the model's own. InputError for anything else."""
    if text is None:
        return None
    if isinstance(text, (tuple, list)):
        text = "x".join(map(str, text))
    found = re.fullmatch(r"(?:(\d+)(?:[x×](\d+))?|buckets(?::(\d+))?)", str(text).strip().lower())
    if not found or any(v and not 1 <= int(v) <= MOST_PIXELS for v in found.groups()):
        raise InputError(f"resolution={text!r}: take a side (512), a width and a height (832x1216), or buckets, perhaps with the "
                         "side of their square (buckets:1024)")
    width, height, side = (int(v) if v else None for v in found.groups())
    return (width, height or width) if width else (BUCKETS, side)


def wants_buckets(resolution):
    parsed = parse_resolution(resolution)
    return bool(parsed) and parsed[0] == BUCKETS


def fixed_size(resolution):
    """-> (width, height), or (None, None) where the model or a prompt's own size decides."""
    parsed = parse_resolution(resolution)
    return parsed if parsed and parsed[0] != BUCKETS else (None, None)


def bucket(width, height, side):
    """The bucket of a picture of width × height pixels, of about side² pixels -> (width, height), as training has it."""
    return nearest_bucket((width, height), bucket_shapes(side, bucket_grain(side)))


def native_side(folder):
    """The side in pixels that a model in diffusers' layout draws by itself, by its configs; None where they do not say."""
    try:
        part = next(folder / name for name in ("unet", "transformer") if (folder / name / "config.json").exists())
        latents = json.loads((part / "config.json").read_text(encoding="utf-8")).get("sample_size")
        levels = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))["block_out_channels"]
    except (OSError, ValueError, KeyError, StopIteration):
        return None
    return latents * 2 ** (len(levels) - 1) if isinstance(latents, int) else None


def prompts_in_buckets(config, prompts, examples):
    """The prompts as a SamplingOptions asks for them: under `buckets` each with the size of its training picture's bucket, and
    the square where it belongs to no picture. examples: of the training set, iterable of Example."""
    if not wants_buckets(config.resolution):
        return prompts
    side = parse_resolution(config.resolution)[1] or native_side(Path(config.model))
    if not side:
        raise InputError("--resolution buckets does not know the side of this model's pictures: name it, as in buckets:1024")
    pictures, wanted = {e.image_id: e for e in examples}, {p.image_id for p in prompts}
    shapes = {i: pictures[i].size() for i in wanted & pictures.keys()}
    sizes = {i: bucket(width, height, side) for i, (width, height) in shapes.items()}
    if not sizes:
        raise InputError("--resolution buckets takes the shapes of the training pictures that prompts belong to, and these "
                         "belong to none: name a size, such as 832x1216")
    return [replace(p, size=sizes.get(p.image_id, (side, side))) for p in prompts]
