"""Copies that a comparison of whole images misses: of a part, mirrored, recoloured. Apart from verbatim ones, and never counted
with them; they need no weights.

Each kind looks at a picture in one or several views and compares each with the same view of every training image. Its threshold
is the quantile, over training images, of the best that any of its views reaches on another training image, so a picture has the
same chance of a false alarm whether a kind has one view or five.
"""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from rotescope.evaluate.descriptor import centred_pixels, square
from rotescope.evaluate.replication import copy_threshold
from rotescope.evaluate.search import nearest

CHUNK = 64
AT_MOST = 50_000   # training images: their tiles are held in memory
COMPARED = 2_000   # training images that the thresholds rest on
FLAT = 8.0         # a tile whose levels (of 255) vary less holds nothing to copy
WHOLE = ((0.0, 0.0, 1.0, 1.0),)
TILES = tuple((x, y, 0.5, 0.5) for y in (0.0, 0.5) for x in (0.0, 0.5)) + ((0.25, 0.25, 0.5, 0.5),)  # quarters and the middle


@dataclass(frozen=True)
class Kind:
    """views: RGB images -> list of (n, d); `asked` of a generated image, `kept` of a training image; pairs: which with which."""
    asked: Callable
    kept: Callable
    pairs: tuple[tuple[int, int], ...]
    regions: tuple[tuple[float, float, float, float], ...] = WHOLE  # left, top, width, height of each view in the centre square


def tiles(images):
    """-> for each tile (n, 768): its colours at 16 × 16, each channel less its mean; 0 where it is flat."""
    squares = [square(image, 64, Image.BOX) for image in images]
    boxes = [tuple(round(64 * v) for v in (x, y, x + w, y + h)) for x, y, w, h in TILES]
    found = [centred_pixels([s.crop(box) for s in squares], 16) for box in boxes]
    return [x * (x.std(axis=1, keepdims=True) >= FLAT) for x in found]


def upright(images):
    return [centred_pixels(images)]


def mirrored(images):
    return [centred_pixels([ImageOps.mirror(image) for image in images])]


def grey(images):
    """-> [(n, 1024)]: luminance at 32 × 32 less its mean, which tinting, fading and contrast leave nearly as it is."""
    return [centred_pixels([image.convert("L").convert("RGB") for image in images])[:, ::3]]


def both_signs(images):
    """Of the picture and of its negative."""
    (x,) = grey(images)
    return [x, -x]


KINDS = {
    "part": Kind(tiles, tiles, tuple((i, i) for i in range(len(TILES))), TILES),
    "mirrored": Kind(mirrored, upright, ((0, 0),)),
    "recoloured": Kind(both_signs, grey, ((0, 0), (1, 0))),
}


def partial_copies(pictures, training, verbatim, quantile=0.99):
    """pictures: n functions that open a generated image; training: m that open a training image; verbatim (n,) bool
    -> ([{position, kind, similarity, row, regions}] of the others, {kind: threshold}).

    regions are (left, top, width, height) as shares of the centre square, the same in both pictures.
    """
    found, thresholds = [], {}
    if len(training) < 2:
        return found, thresholds
    compared = np.unique(np.linspace(0, len(training) - 1, min(len(training), COMPARED)).round().astype(int))
    for name, kind in KINDS.items():
        kept = _described(kind.kept, training)
        null = _similarity(_described(kind.asked, [training[i] for i in compared]), kept, kind.pairs, compared)[0].max(0)
        thresholds[name] = copy_threshold(null, quantile)
        asked = _described(kind.asked, pictures)
        similarity, row = _similarity(asked, kept, kind.pairs)
        for i in np.flatnonzero((similarity.max(0) >= thresholds[name]) & ~np.asarray(verbatim, bool)):
            match = _match(kind, [a[i] for a in asked], kept, row[:, i], thresholds[name])
            found.append({"position": int(i), "kind": name} | match)
    return sorted(found, key=lambda f: -f["similarity"]), thresholds


def _described(views, openers):
    """-> a list of (n, d) float16 with rows of length 1 or 0, few pictures in memory at a time."""
    parts = [views([open_one() for open_one in openers[i:i + CHUNK]]) for i in range(0, len(openers), CHUNK)]
    joined = [np.concatenate(of_one_view) for of_one_view in zip(*parts, strict=True)]
    return [(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)).astype(np.float16) for x in joined]


def _similarity(asked, kept, pairs, own=None):
    """-> similarity (views, n) and row (views, n) of the nearest training image, by each pair of views."""
    found = [nearest(asked[a], kept[k], own=own) for a, k in pairs]
    return np.stack([s[:, 0] for s, _ in found]), np.stack([r[:, 0] for _, r in found])


def _match(kind, asked, kept, rows, threshold):
    """The training image that shares most views with a picture, and which: asked: a view each (d,); rows: the nearest by each."""
    def by_view(row):
        return np.array([np.dot(asked[a].astype(np.float32), kept[k][row].astype(np.float32)) for a, k in kind.pairs])
    scored = {row: by_view(row) for row in set(rows.tolist())}
    row = max(scored, key=lambda r: ((scored[r] >= threshold - 1e-4).sum(), scored[r].max()))
    hits = np.flatnonzero(scored[row] >= threshold - 1e-4)
    regions = [kind.regions[i] for i in hits] if len(kind.regions) == len(kind.pairs) else list(WHOLE)
    return {"row": int(row), "similarity": float(min(scored[row].max(), 1)), "regions": [list(r) for r in regions]}
