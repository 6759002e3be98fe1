"""Images and training data that need no folder: PIL images become Samples and a Manifest, as
if they had been read."""
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from PIL import Image, ImageOps

from rotescope.common.errors import InputError
from rotescope.datasets.images.image_bytes import to_rgb
from rotescope.datasets.manifest import Example, Manifest
from rotescope.datasets.plans.duplication import group_by_copies
from rotescope.datasets.readers.sources import read_source
from rotescope.evaluate.inputs.samples import Record, Samples, pixels_sha256, read_samples
from rotescope.evaluate.inputs.training_and_heldout import left_out_named

WANTED = "pass a folder, or a list of PIL images, (image, prompt) pairs or objects with .image and .prompt"


@dataclass(frozen=True)
class HeldExample(Example):
    """A training image in memory."""
    picture: Image.Image = field(default=None, compare=False, repr=False)  # type: ignore[assignment]  # always given

    @property
    def name(self):
        return self.file

    def open(self):
        """-> PIL image, RGB."""
        return self.picture.copy()


# ----- generated images

def samples_of(images):
    """Generated images in any form that `score` takes.

    Parameters
    ----------
    images : str, Path, Samples or iterable
        A folder; or PIL images, (image, prompt) pairs, or objects with .image and .prompt, perhaps also
        .mitigation (or .method), .group, .seed and .image_id: so are those of `generate`.

    Returns
    -------
    Samples

    Raises
    ------
    InputError
        If there are no images, or something else.
    """
    if isinstance(images, str | PathLike | Samples):
        return read_samples(images)
    if not isinstance(images, Iterable):
        raise InputError(f"{images!r} holds no generated images: {WANTED}")
    records, held, prompts = [], {}, {}
    for i, one in enumerate(images):
        picture, known = _taken_apart(one)
        name = f"image {i:05d}"
        held[name] = _rgb(picture, name)
        if known.get("prompt"):
            known["prompt_index"] = prompts.setdefault((known.get("group"), known["prompt"]), len(prompts))
        records.append(Record(name, **known))
    if not records:
        raise InputError(f"there are no generated images: {WANTED}")
    return Samples(None, tuple(records), held=held)


def _taken_apart(one):
    """-> the picture, and fields of Record."""
    if isinstance(one, Image.Image):
        return one, {}
    if isinstance(one, tuple) and len(one) == 2:
        return one[0], {"prompt": _text(one[1])} if one[1] else {}
    if hasattr(one, "image"):
        return one.image, _known(one)
    raise InputError(f"a {type(one).__name__} is no generated image: {WANTED}")


def _known(one):
    """What a generated image says of itself, as `generate` has it -> fields of Record."""
    prompt = getattr(one, "prompt", None)
    found = {key: getattr(one, key, None) for key in ("seed", "denoiser_rows", "transition_timestep", "active")}
    found |= {key: tuple(getattr(one, key, None) or ()) for key in ("prediction_gaps", "timesteps")}
    found |= {key: getattr(one, key, None) or getattr(prompt, key, None) for key in ("group", "image_id")}
    found |= {"method": getattr(one, "method", None) or getattr(one, "mitigation", None),
              "prompt": prompt and _text(prompt)}
    return {key: value for key, value in found.items() if value not in (None, "", ())}


def _text(prompt):
    return str(getattr(prompt, "text", prompt))


def _rgb(picture, name):
    if not isinstance(picture, Image.Image):
        raise InputError(f"{name} is a {type(picture).__name__}, not a PIL image: {WANTED}")
    try:
        return to_rgb(ImageOps.exif_transpose(picture))
    except ValueError as error:
        raise InputError(f"{name} cannot be used ({error}): convert it to RGB") from error


# ----- training and held-out pictures

def data_of(train_data, heldout_data=None):
    """Training and held-out pictures in any form that `score` takes.

    Parameters
    ----------
    train_data, heldout_data : str, Path, Manifest or iterable of PIL images
        heldout_data may be None.

    Returns
    -------
    tuple
        Manifest of the training images, that of the held-out pictures or None, LeftOut pictures of both.

    Raises
    ------
    InputError
        If nothing is there, or nothing that can be read.
    """
    (training, unread), (heldout, unread_heldout) = _manifest(train_data, "training"), _manifest(heldout_data, "held-out")
    if training is None:
        raise InputError("there are no training images: name a folder, a Parquet file or a manifest, or pass PIL images")
    return training, heldout, (*unread, *unread_heldout)


def _manifest(data, what):
    """-> Manifest, None for nothing; LeftOut pictures."""
    if data is None or isinstance(data, Manifest):
        return data, []
    if isinstance(data, str | PathLike):
        source = read_source(Path(data), need_captions=False)
        return group_by_copies(source.manifest), left_out_named(what, source.quarantined)
    examples, seen = [], {}
    for i, picture in enumerate(data):
        rgb = _rgb(picture, f"{what} picture {i:05d}")
        sha = pixels_sha256(rgb)
        seen[sha] = seen.get(sha, 0) + 1
        suffix = f"-{seen[sha]}" if seen[sha] > 1 else ""
        examples.append(HeldExample(sha[:16] + suffix, (), f"{what} picture {i:05d}", None, sha, picture=rgb))
    if not examples:
        raise InputError(f"there are no {what} pictures: pass at least two")
    return Manifest(tuple(examples)), []
