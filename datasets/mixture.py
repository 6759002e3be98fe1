"""What a plan starts from: caption styles for a whole data set, and other data beside it at a ratio."""
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from rotescope.datasets.captions import caption_words, replace_caption
from rotescope.datasets.records import Manifest
from rotescope.errors import InputError

CAPTION_LEVELS = ("caption", "none", "class", "random")


def recaption(manifest, level, seed=0, vocabulary=None):
    """Caption styles of Somepalli et al. (NeurIPS 2023) for every image -> Manifest.

    "caption": as they are; "none": "An image"; "class": "An image of CLASS", by the name of the folder that the image lies in;
    "random": four random words for each image, always the same for a seed, from `vocabulary` or else all captions' words.
    """
    if level not in CAPTION_LEVELS:
        raise InputError(f"no caption level {level!r}: take one of {', '.join(CAPTION_LEVELS)}")
    if level == "caption":
        return manifest
    words = (vocabulary or caption_words(manifest.captions())) if level == "random" else ()
    if level == "random" and not words:
        raise InputError("random captions need words, and the data has no captions: give them a vocabulary")
    write = {"none": lambda e: "An image", "class": lambda e: f"An image of {_class_of(e)}",
             "random": lambda e: replace_caption("", np.random.default_rng(_number(seed, e.image_id)), vocabulary=words)}[level]
    return Manifest(tuple(replace(e, captions=(write(e),)) for e in manifest))


def mix(manifest, others, ratio, seed=0):
    """The manifest, then `ratio` times as many samples an epoch from `others`, each once and in no group -> Manifest.

    Wen et al. (ICLR 2024) mix 200 images × 200 copies with 3 times as many others. The choice is by hash of (seed, image_id).
    Raises InputError if there are not enough, images that the manifest has left out.
    """
    wanted, own = round(ratio * manifest.copies), {e.sha256 for e in manifest}
    if ratio < 0:
        raise InputError(f"--mix_ratio {ratio}: it should be 0 or more")
    pool = {e.sha256: e for e in sorted(others, key=lambda e: _number(seed, e.image_id), reverse=True) if e.sha256 not in own}
    if len(pool) < wanted:
        raise InputError(f"a ratio of {ratio:g} takes {wanted} other images, there are {len(pool)}: lower it or the copies")
    chosen = sorted(pool.values(), key=lambda e: _number(seed, e.image_id))[:wanted]
    return Manifest(manifest.examples + tuple(replace(e, copies=1, group="", served=0, matched="") for e in chosen))


def _class_of(example):
    if example.row is not None:
        raise InputError(f"{example.name} lies in no folder of a class: class captions need image files, a folder for each class")
    return Path(example.file).parent.name.replace("_", " ")


def _number(seed, image_id):
    return int.from_bytes(hashlib.sha256(f"{seed}:{image_id}".encode()).digest()[:8], "big")
