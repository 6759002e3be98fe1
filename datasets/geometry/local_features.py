"""Local features of a picture: what lies where in it, told so that a crop, a turn or a new size changes
little.

SIFT (Lowe 2004) finds places that stand out and describes their surroundings by the directions of the
gradients. Its descriptors are compared as RootSIFT (Arandjelović and Zisserman 2012): the square root of each
entry, at sum 1. A picture is taken at one area, in its own shape, and its strongest features are kept, spread
over it.
"""
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image

from rotescope.datasets.images.near_duplicates import Y_CB_CR

SIDE = 320              # pixels: a picture is taken at an area of SIDE²
LONGEST, SHORTEST = 4 * SIDE, 16   # pixels of its sides then; what is narrower still has no features
ENLARGED = 8            # times at most
TRAINING_MOST = 320     # features that are kept of a training picture
GENERATED_MOST = 640    # and of a generated one: it is only held while it is compared
CONTRAST = 0.005        # of a feature, a share of the whole range: low, since models draw softly
CELLS, CELL_SHARE = 8, 1.5 / 64    # cells a side; share of the features that one may take at first
DIM = 128
LENGTH = 512            # of a descriptor, so that its entries fill a byte
THUMBNAIL = 64          # pixels a side, whatever the picture's shape
MIRRORED_BINS = np.arange(DIM).reshape(4, 4, 8)[::-1][..., (-np.arange(8)) % 8].ravel()


@dataclass(frozen=True)
class LocalFeatures:
    """Of one picture, n of them, the strongest first.

    places: (n, 2) float32, x and y as shares of the picture; scales: (n,) float32, pixels at the working
    size; angles: (n,) float32, degrees, clockwise from the right; descriptors: (n, 128) uint8, of length 512;
    size: width and height in pixels as the picture was taken; thumbnail: (64, 64, 3) uint8, the whole
    picture.
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
        return _featureless(size, small)
    reduced = image.resize(size, Image.BICUBIC, reducing_gap=3.0)
    grey = (np.asarray(reduced, np.float32) @ Y_CB_CR[0].astype(np.float32)).round().astype(np.uint8)
    sift = cv2.SIFT_create(  # type: ignore[attr-defined]  # precise: else a quarter of a pixel off
        contrastThreshold=CONTRAST, enable_precise_upscale=True)
    found = sift.detect(grey)
    if not found:
        return _featureless(size, small)
    strengths = np.array([f.response * f.size for f in found])  # what is coarse outlives noise and blur
    kept = _spread((np.array([f.pt for f in found]) + 0.5) / size, strengths, most)
    found, descriptors = sift.compute(grey, [found[i] for i in kept])
    x, y, scales, angles = np.array([(*f.pt, f.size, f.angle) for f in found], np.float32).T  # (n,) each
    places = (np.stack([x, y], 1) + 0.5) / np.array(size, np.float32)
    return LocalFeatures(places, scales, angles, _rooted(descriptors), size, small)


def working_size(width: int, height: int) -> tuple[int, int]:
    """-> at which size in pixels a picture is taken: of one area, no side too long, nothing enlarged without
    end."""
    scale = min(SIDE / (width * height) ** 0.5, LONGEST / max(width, height), ENLARGED)
    return max(round(scale * width), 1), max(round(scale * height), 1)


def mirror_image(features: LocalFeatures) -> LocalFeatures:
    """The features of the picture's mirror image, left and right exchanged: what extraction from it would
    find.

    A descriptor has 4 × 4 cells along and across its own direction and 8 directions in each. The mirror keeps
    what lies along it, and turns round what lies across and which way the directions run.
    """
    places = np.stack([1 - features.places[:, 0], features.places[:, 1]], 1)
    return replace(features, places=places, angles=180 - features.angles,
                   descriptors=features.descriptors[:, MIRRORED_BINS], thumbnail=features.thumbnail[:, ::-1])


def feature_numbers(features: LocalFeatures) -> np.ndarray:
    """-> (n, 4) float32: x, y and scale in pixels of the working size, angle in degrees."""
    places = features.places * np.array(features.size, np.float32)
    return np.concatenate([places, features.scales[:, None], features.angles[:, None]], 1)


def _featureless(size, thumbnail):
    none = np.zeros(0, np.float32)
    return LocalFeatures(np.zeros((0, 2), np.float32), none, none, np.zeros((0, DIM), np.uint8), size, thumbnail)


def _rooted(descriptors):
    """SIFT (n, 128) float32 -> RootSIFT (n, 128) uint8."""
    shares = descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-6)
    return np.clip(LENGTH * np.sqrt(shares), 0, 255).round().astype(np.uint8)


def _spread(places, strengths, most):
    """-> which features are kept: the strongest, but of one cell only its share as long as other cells have
    any."""
    order = np.lexsort((places[:, 1], places[:, 0], -strengths))  # the places bring equals into one order
    cells = np.minimum((places[order] * CELLS).astype(int), CELLS - 1) @ (1, CELLS)
    by_cell = np.argsort(cells, kind="stable")
    rank = np.empty(len(order), int)
    starts = np.searchsorted(cells[by_cell], np.arange(CELLS ** 2))
    rank[by_cell] = np.arange(len(order)) - starts[cells[by_cell]]
    first = np.argsort(rank >= max(round(most * CELL_SHARE), 1), kind="stable")[:most]
    return order[first]
