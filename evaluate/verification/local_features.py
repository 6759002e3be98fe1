"""Local features of a picture: what lies where in it, told so that a crop, a turn or another size changes little.

SIFT (Lowe 2004) finds places that stand out and describes their surroundings by the directions of the gradients; its descriptors
are compared as RootSIFT (Arandjelović and Zisserman 2012): the square root of each entry, at sum 1. A picture is taken at
one area, in its own shape, and its strongest features are kept, spread over it.
"""
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image

from rotescope.datasets.images.near_duplicates import Y_CB_CR

SIDE = 320              # pixels: a picture is taken at an area of SIDE²
LONGEST, SHORTEST = 4 * SIDE, 16   # pixels of its sides then; a picture that is narrower still has no features
ENLARGED = 8            # times at most
TRAINING_MOST = 320     # features that are kept of a training picture
GENERATED_MOST = 640    # and of a generated one: it is only held while it is compared
CONTRAST = 0.005        # of a feature, a share of the whole range: an eighth of what is usual, for softly drawn pictures
CELLS, CELL_SHARE = 8, 1.5 / 64      # cells a side; share of the features that one cell may take while others have some
DIM = 128
LENGTH = 512            # of a descriptor, so that its entries fill a byte
THUMBNAIL = 64          # pixels a side, whatever the picture's shape
MIRRORED_BINS = np.arange(DIM).reshape(4, 4, 8)[::-1][..., (-np.arange(8)) % 8].ravel()


@dataclass(frozen=True)
class LocalFeatures:
    """Of one picture, n of them, the strongest first.

    places: (n, 2) float32, x and y as shares of the picture; scales: (n,) float32, pixels at the working size; angles: (n,) float32,
    degrees, clockwise from the right; descriptors: (n, 128) uint8, of length 512; size: width and height in pixels as
    the picture was taken; thumbnail: (64, 64, 3) uint8, the whole picture.
    """
    places: np.ndarray
    scales: np.ndarray
    angles: np.ndarray
    descriptors: np.ndarray
    size: tuple[int, int]
    thumbnail: np.ndarray

    def __len__(self):
        return len(self.places)


def local_features(image: Image.Image, most: int = TRAINING_MOST) -> LocalFeatures:
    """Of an RGB picture in its own shape, at most `most`."""
    small = np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.BOX), np.uint8)
    size = working_size(*image.size)
    if min(size) < SHORTEST:
        return LocalFeatures(*_nothing(), size, small)
    reduced = image.resize(size, Image.BICUBIC, reducing_gap=3.0)
    grey = np.clip(np.asarray(reduced, np.float32) @ Y_CB_CR[0].astype(np.float32), 0, 255).round().astype(np.uint8)
    found = cv2.SIFT_create(0, 3, CONTRAST).detect(grey)
    if not found:
        return LocalFeatures(*_nothing(), size, small)
    kept = _spread((np.array([f.pt for f in found]) + 0.5) / size, np.array([f.response * f.size for f in found]), most)
    found, descriptors = cv2.SIFT_create().compute(grey, [found[i] for i in kept])
    places = (np.array([f.pt for f in found], np.float32) + 0.5) / np.array(size, np.float32)
    return LocalFeatures(places, *(np.array([getattr(f, name) for f in found], np.float32) for name in ("size", "angle")),
                         _rooted(descriptors), size, small)


def working_size(width: int, height: int) -> tuple[int, int]:
    """-> at which size in pixels a picture is taken: of one area, but no side too long and nothing enlarged without end."""
    scale = min(SIDE / (width * height) ** 0.5, LONGEST / max(width, height), ENLARGED)
    return max(round(scale * width), 1), max(round(scale * height), 1)


def mirror_image(features: LocalFeatures) -> LocalFeatures:
    """The features of the picture's mirror image, left and right exchanged: what extraction from it finds, without extraction.

    A descriptor has 4 × 4 cells along and across its own direction and 8 directions in each. The mirror keeps what lies along it,
    and turns round what lies across and which way the directions run.
    """
    return replace(features, places=np.stack([1 - features.places[:, 0], features.places[:, 1]], 1), angles=180 - features.angles,
                   descriptors=features.descriptors[:, MIRRORED_BINS], thumbnail=features.thumbnail[:, ::-1])


def in_pixels(features: LocalFeatures) -> np.ndarray:
    """-> (n, 2) float32: where the features lie, in pixels of the working size."""
    return features.places * np.array(features.size, np.float32)


def _nothing():
    return (np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros((0, DIM), np.uint8))


def _rooted(descriptors):
    """SIFT (n, 128) float32 -> RootSIFT (n, 128) uint8."""
    shares = descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-6)
    return np.clip(LENGTH * np.sqrt(shares), 0, 255).round().astype(np.uint8)


def _spread(places, strengths, most):
    """-> which features are kept, (n,) int: the strongest, but of one cell only its share as long as other cells have any."""
    order = np.lexsort((places[:, 1], places[:, 0], -strengths))  # the places make equals come in one order
    cells = np.minimum((places[order] * CELLS).astype(int), CELLS - 1) @ (1, CELLS)
    by_cell = np.argsort(cells, kind="stable")
    rank = np.empty(len(order), int)
    starts = np.searchsorted(cells[by_cell], np.arange(CELLS ** 2))
    rank[by_cell] = np.arange(len(order)) - starts[cells[by_cell]]
    first = np.argsort(rank >= max(round(most * CELL_SHARE), 1), kind="stable")[:most]
    return order[first]
