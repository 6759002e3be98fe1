"""What a descriptor is, and two that need no weights: pixels and PDQ."""
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from PIL import Image

from rotescope.common.errors import InputError
from rotescope.datasets.images.square import square

PDQ_FEATURELESS = 50  # quality below which PDQ's authors call a hash meaningless


@dataclass(frozen=True)
class Descriptor:
    """Called with a list of n RGB images -> float32 (n, dim), rows of length 1 or 0, so that a product is a cosine."""
    name: str                                       # weights, preprocessing and number type
    dim: int
    raw: Callable[[list[Image.Image]], np.ndarray]  # n images -> (n, dim), of any length
    kind: str = "copy"                              # or "semantic": near means alike in subject, which is no copy
    sha256: str = ""                                # of the weights

    def __call__(self, images):
        vectors = np.asarray(self.raw(images) if images else [], np.float32).reshape(-1, self.dim)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def centred_pixels(images, side=32):
    """n RGB images -> (n, 3·side²) float32: colours at side × side, each channel less its mean."""
    return centred(np.stack([np.asarray(square(image, side, Image.BOX), np.float32) for image in images]))


def centred(x):
    """(n, h, w, c) -> (n, c·h·w): each channel less its mean over the picture."""
    return (x - x.mean(axis=(1, 2), keepdims=True)).reshape(len(x), -1)


def pixels():
    """Colours themselves at 32 × 32, each channel less its mean: needs no weights and is exact on copies.

    An image of one flat colour has descriptor 0 and so matches nothing.
    """
    return Descriptor("pixels-32-centred-fp32", 32 * 32 * 3, centred_pixels)


def pdq():
    """Meta's perceptual hash of 256 bits as a vector of ±1: the cosine is 1 − 2·(differing bits) / 256.

    An image without features (quality below 50) has descriptor 0 and so matches nothing.
    """
    try:
        import pdqhash
    except ImportError as error:
        raise InputError("the descriptor pdq needs a package: pip install pdqhash") from error

    def one(image):
        bits, quality = pdqhash.compute(np.asarray(image.convert("RGB")))
        return (2.0 * bits - 1) * (quality >= PDQ_FEATURELESS)
    return Descriptor(f"pdq-256-bits-pdqhash-{version('pdqhash')}", 256, lambda images: np.stack([one(i) for i in images]))
