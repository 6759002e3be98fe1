"""Pictures that this project did not make, and its own scenes: training, held-out and fresh ones that share no pixel.

The photographs are regions of those that scikit-image and scikit-learn ship (their licences: skimage/data/README.txt,
sklearn/datasets/images/README.txt; most are in the public domain). They are read as files: neither package is imported.
"""
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from rotescope.common.errors import InputError
from rotescope.datasets.emoji.scenes import scenes
from rotescope.evaluate.descriptors.square_views import square_view

FILES = {"skimage": ("data", (
    "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "hubble_deep_field.jpg", "ihc.png",
    "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg", "brick.png", "grass.png", "gravel.png",
    "clock_motion.png", "cell.png", "page.png")),
         "sklearn": ("datasets/images", ("china.jpg", "flower.jpg"))}
CUT = 128      # pixels a side of a region
SIDE = 256     # to which it is enlarged
FLAT = 12.0    # levels of standard deviation below which a region shows hardly anything


@dataclass(frozen=True)
class PictureSets:
    """RGB pictures of one size; no two share a pixel."""
    train: tuple[Image.Image, ...]
    heldout: tuple[Image.Image, ...]
    fresh: tuple[Image.Image, ...]


def photographs(train=96, heldout=35):
    """-> PictureSets of 256 × 256: regions dealt out at random (seed 0), so that each set has some of every photograph."""
    regions = [region for file in photograph_files() for region in _regions(file)]
    order = np.random.default_rng(0).permutation(len(regions))
    dealt = [regions[i] for i in order]
    return PictureSets(tuple(dealt[:train]), tuple(dealt[train:train + heldout]), tuple(dealt[train + heldout:]))


def wide_photographs(at_least=1.3):
    """-> whole photographs in their own shape, long side 400 pixels, that are so much longer than high or higher than long;
    and the square at either end of each, which a centre square hardly shows."""
    whole = [Image.open(file).convert("RGB") for file in photograph_files()]
    wide = [image for image in whole if max(image.size) >= at_least * min(image.size)]
    for image in wide:
        image.thumbnail((400, 400), Image.LANCZOS)
    ends = [square_view(image, end) for image in wide for end in ("start", "end")]
    return wide, ends


def emoji_scenes(train=1000, heldout=800, fresh=400):
    """-> PictureSets of 64 × 64: the embedded world's own scenes, drawn anew."""
    every = [scene.image for scene in scenes(train + heldout + fresh, seed=20_261_128)]
    return PictureSets(tuple(every[:train]), tuple(every[train:train + heldout]), tuple(every[train + heldout:]))


def photograph_files():
    """The files, by package. InputError if a package is not installed."""
    found = []
    for package, (folder, names) in FILES.items():
        spec = find_spec(package)
        if spec is None:
            raise InputError("the photographs come with two packages: pip install scikit-image scikit-learn")
        found += [Path(spec.submodule_search_locations[0]) / folder / name for name in names]
    return found


def _regions(file):
    """Squares side by side, from the middle of the photograph outwards as many as fit; flat ones are left out."""
    image = Image.open(file).convert("RGB")
    across, down = image.width // CUT, image.height // CUT
    left, top = (image.width - across * CUT) // 2, (image.height - down * CUT) // 2
    for y in range(down):
        for x in range(across):
            box = (left + x * CUT, top + y * CUT, left + (x + 1) * CUT, top + (y + 1) * CUT)
            region = image.crop(box)
            if np.asarray(region.convert("L"), np.float64).std() >= FLAT:
                yield region.resize((SIDE, SIDE), Image.BICUBIC)
