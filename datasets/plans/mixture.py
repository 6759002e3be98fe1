"""What a plan starts from: caption styles for a whole data set, and other data beside it at a ratio."""
import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from rotescope.common.errors import InputError
from rotescope.datasets.captions.perturbation import replace_caption
from rotescope.datasets.manifest import Manifest
from rotescope.models.seeds import hashed_integer

CLASS_FILE = "write a .csv with the columns folder and name, or a .json object {folder: name}"
CAPTION_LEVELS = ("caption", "none", "class", "random")


def recaption(manifest, level, seed=0, vocabulary=(), class_names=None):
    """Caption styles of Somepalli et al. (NeurIPS 2023) for every image, captioned or not -> Manifest.

    "caption": as they are; "none": "An image"; "class": "An image of CLASS", by the name of the folder that the image lies in,
    or what class_names, {folder: name}, has for it; "random": four words of `vocabulary`, which the authors take from a
    tokenizer's tokens, for each image, always the same for a seed.
    """
    check_level(level)
    if level == "caption":
        return manifest
    if level == "random" and not vocabulary:
        raise InputError("random captions need a vocabulary, and that is empty: name another tokenizer")

    def random_words(example):
        return replace_caption("", np.random.default_rng(_number(seed, example.image_id)), vocabulary=vocabulary)
    write = {"none": lambda e: "An image", "class": lambda e: f"An image of {_class_of(e, class_names)}",
             "random": random_words}[level]
    return Manifest(tuple(replace(e, captions=(write(e),)) for e in manifest))


def check_level(level):
    if level not in CAPTION_LEVELS:
        raise InputError(f"no caption level {level!r}: take one of {', '.join(CAPTION_LEVELS)}")


def read_class_names(file):
    """A .csv with the columns folder and name, or a .json object -> {folder: name}; else InputError."""
    file = Path(file)
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            found = json.load(stream) if file.suffix == ".json" else {r["folder"]: r["name"] for r in csv.DictReader(stream)}
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as class names ({error}): {CLASS_FILE}") from error
    if not isinstance(found, dict) or not found or not all(isinstance(n, str) and n.strip() for n in found.values()):
        raise InputError(f"{file} should name a class for each folder: {CLASS_FILE}")
    return {folder: name.strip() for folder, name in found.items()}


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


def _class_of(example, names):
    folder = Path(example.file).parent.name
    if example.row is not None:
        raise InputError(f"{example.name} lies in no folder of a class: class captions need image files, a folder for each class")
    if names and folder not in names:
        raise InputError(f"the class names have none for the folder {folder} of {example.name}: add it")
    if not names and re.fullmatch(r"n\d{8}", folder):
        raise InputError(f"the folder {folder} is called by a WordNet id, which says nothing to a model: pass --class_names")
    return names[folder] if names else folder.replace("_", " ")


def _number(seed, image_id):
    return hashed_integer(f"{seed}:{image_id}")
