"""What each kind of copy looks at. Everything here sees a picture as its centre square at 64 × 64, so each is opened once."""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from rotescope.datasets.images.near_duplicates import Y_CB_CR
from rotescope.datasets.images.tiled_distance import tiled_distances
from rotescope.evaluate.descriptors.descriptor import centred
from rotescope.evaluate.neighbours.nearest import cosine

SIDE = 64
FLAT = 8.0         # what varies less, in levels of 255, holds nothing to copy
WHOLE = (0.0, 0.0, 1.0, 1.0)  # a region: left, top, width, height as shares of the centre square
TILES = tuple((x, y, 0.5, 0.5) for y in (0.0, 0.5) for x in (0.0, 0.5)) + ((0.25, 0.25, 0.5, 0.5),)  # quarters and the middle
BLOCKS = 8         # a side: what a template agrees in, or not
AGREE = 0.5        # correlation from which two blocks do
GROUND = 24.0      # Euclidean distance of colours up to which a pixel has the ground's
BORDER, GROUND_SHARE = 2, 0.7  # pixels deep; share of the border that one colour must fill, to be a ground
OBJECTS, LEAST = 2, 0.02       # foreground objects that are looked at; share of the picture that each fills at least


@dataclass(frozen=True)
class Kind:
    """Views: squares (n, 64, 64, 3) uint8 -> list of (n, d) float32, 0 where a picture holds nothing for that view."""
    asked: Callable    # views of a generated picture
    kept: Callable     # and of a training image
    pairs: tuple[tuple[int, int], ...] = ((0, 0),)  # which are compared with which
    regions: Callable = lambda made, trained, pair: (WHOLE, WHOLE)  # two squares, a pair -> region of either, or None
    score: Callable = cosine  # as search.nearest has it


def shrunk(squares, side):
    """(n, s, s, 3) uint8 -> (n, side, side, 3) float32: means of blocks."""
    n, s = squares.shape[:2]
    return squares.reshape(n, side, s // side, side, s // side, 3).mean((2, 4), dtype=np.float32)


def unit(x, flat=FLAT):
    """Rows (…, d) at length 1, or 0 where they vary less than `flat`."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6) * (x.std(axis=-1, keepdims=True) >= flat)


# ----- the whole picture: mirrored, recoloured, tile by tile

def upright(squares):
    return [unit(centred(shrunk(squares, 32)), 0)]


def mirrored(squares):
    return upright(squares[:, :, ::-1])


def grey(squares):
    """-> [(n, 1024)]: luminance at 32 × 32 less its mean, which tinting, fading and contrast leave nearly as it is."""
    return [unit(centred((shrunk(squares, 32) @ Y_CB_CR[0].astype(np.float32))[..., None]), 0)]


def both_signs(squares):
    """Of the picture and of its negative."""
    (x,) = grey(squares)
    return [x, -x]


def colours(squares):
    """-> [(n, 3072)]: colours at 32 × 32, from −½ to ½ so that products lose little."""
    return [(shrunk(squares, 32) / 255 - 0.5).transpose(0, 3, 1, 2).reshape(len(squares), -1)]


def unless_flat(squares):
    return [x * (x.std(axis=1, keepdims=True) >= FLAT / 255) for x in colours(squares)]


def tiled_closeness(query, reference, out):
    """1 − the tiled distance of Carlini et al. 2023, over 4 × 4 tiles of pictures at 32 × 32: 1 where all tiles are the same."""
    return out.copy_(1 - tiled_distances(query.view(-1, 3, 32, 32), reference.view(-1, 3, 32, 32)))


# ----- a part in its place, and all but a part

def tile_views(squares):
    """-> for each tile (n, 768): its colours at 16 × 16, each channel less its mean."""
    boxes = [tuple(round(SIDE * v) for v in box) for box in TILES]
    return [unit(centred(shrunk(squares[:, y:y + h, x:x + w], 16))) for x, y, w, h in boxes]


def tile(made, trained, pair):
    return TILES[pair[0]], TILES[pair[1]]


def blocks(squares):
    """-> (n, 64, 48): 8 × 8 blocks of the picture at 32 × 32, each channel less its mean in the block, at length 1 or 0."""
    n, of = len(squares), 32 // BLOCKS
    x = shrunk(squares, 32).reshape(n, BLOCKS, of, BLOCKS, of, 3).transpose(0, 1, 3, 2, 4, 5)
    return unit(centred(x.reshape(n * BLOCKS ** 2, of, of, 3))).reshape(n, BLOCKS ** 2, 3 * of * of)


def block_agreement(squares):
    """-> [(n, 3072)], whose product is Σ_b ρ_b / √(N N′): ρ_b the correlation of two pictures in block b, N and N′ in how many
    blocks each holds something. So it is the share of the blocks in which they agree, and a block that differs weighs as much
    as any other, however much it differs: a robust form of Webster's (2023) comparison outside a mask, which needs no mask.
    """
    x = blocks(squares)
    return [x.reshape(len(x), -1) / np.sqrt(np.maximum(x.any(2).sum(1), 1))[:, None]]


def difference(made, trained, pair):
    """-> twice the box around the largest group of blocks in which two squares differ; None if they differ nowhere."""
    both = np.stack([made, trained])
    (a, b), (colour, other) = blocks(both), shrunk(both, BLOCKS)
    inside = ((a * b).sum(1) < AGREE) & (a.any(1) | b.any(1))
    found = _largest(inside.reshape(BLOCKS, BLOCKS) | (np.linalg.norm(colour - other, axis=2) > GROUND), 1)
    return (_region(found[0], BLOCKS),) * 2 if found else None


# ----- foreground, wherever it lies

def foreground(squares):
    """-> for each of two objects (n, 768): its box at 16 × 16 on mid-grey instead of its ground, each channel less its mean."""
    found = np.full((OBJECTS, len(squares), 16, 16, 3), 128, np.float32)
    for i, square in enumerate(squares):
        for k, mask in enumerate(objects(square)):
            found[k, i] = _cut(square, mask)
    return [unit(centred(x)) for x in found]


def objects(square):
    """(64, 64, 3) uint8 -> masks (64, 64) bool of at most two objects, the largest first; [] where no ground is told from them.

    The ground is what has the border's median colour and hangs together with the border, if that colour fills most of it.
    """
    border = np.ones((SIDE, SIDE), bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    colour = np.median(square[border], axis=0)
    near = np.linalg.norm(square - colour, axis=2) <= GROUND
    if near[border].mean() < GROUND_SHARE:
        return []
    labels, _ = ndimage.label(near)
    return _largest(~np.isin(labels, labels[border & near]), LEAST * SIDE ** 2, OBJECTS)


def _largest(mask, least, n=1):
    """-> the n largest connected pieces of a mask, of so many pixels at least, as masks."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    return [labels == i + 1 for i in np.argsort(-sizes, kind="stable")[:n] if sizes[i] >= least]


def _region(mask, side):
    rows, columns = ndimage.find_objects(mask.astype(int))[0]
    return (columns.start / side, rows.start / side, (columns.stop - columns.start) / side, (rows.stop - rows.start) / side)


def _cut(square, mask):
    """-> (16, 16, 3): an object's box, the ground in it mid-grey."""
    box = ndimage.find_objects(mask.astype(int))[0]
    alone = Image.fromarray(np.where(mask[..., None], square, np.uint8(128))[box])
    return np.asarray(alone.resize((16, 16), Image.BILINEAR), np.float32)


def placed(made, trained, pair):
    """-> where in each square the object lies."""
    return tuple(_region(objects(square)[k], SIDE) for square, k in zip((made, trained), pair, strict=True))


KINDS = {
    "part": Kind(tile_views, tile_views, tuple((i, i) for i in range(len(TILES))), tile),
    "foreground": Kind(foreground, foreground, tuple((i, k) for i in range(OBJECTS) for k in range(OBJECTS)), placed),
    "template": Kind(block_agreement, block_agreement, regions=difference),
    "tiled": Kind(unless_flat, colours, score=tiled_closeness),
    "mirrored": Kind(mirrored, upright),
    "recoloured": Kind(both_signs, grey, ((0, 0), (1, 0))),
}
