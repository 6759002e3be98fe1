"""Copies that a comparison of whole images misses: of a part, of an object elsewhere, of all but a part, mirrored, recoloured.
Apart from verbatim ones, and never counted with them; they need no weights.

Each kind looks at a picture in one or several views and compares each with views of every training image. Its threshold is the
quantile, over the training images that hold something for it, of the best that any view reaches on another training image, so
a picture has the same chance of a false alarm whether a kind has one view or five.
"""
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from rotescope.datasets.images.square import square
from rotescope.evaluate.neighbours.nearest import nearest
from rotescope.evaluate.nulls.copy_threshold import copy_threshold
from rotescope.evaluate.verification.kinds import KINDS, SIDE

CHUNK = 256
AT_MOST = 50_000   # training images: 12 kB of each are held in memory, and up to 8 kB of one kind's views
COMPARED = 2_000   # training images that the thresholds rest on
ROUNDING = 1e-4


@dataclass(frozen=True)
class Regions:
    """What matches in two pictures, and of a template what differs: left, top, width, height as shares
    of the centre square."""
    generated: tuple[float, float, float, float]
    training: tuple[float, float, float, float]


@dataclass(frozen=True)
class PartialMatch:
    position: int               # of the generated picture
    kind: str                   # of kinds.KINDS
    similarity: float
    row: int                    # of the training image
    regions: tuple[Regions, ...]


def partial_copies(pictures, training, verbatim, quantile=0.99):
    """pictures: n functions that open a generated image; training: m that open a training image; verbatim
    (n,) bool -> (list of PartialMatch of the others, the most similar first; {kind: threshold} of the
    kinds that found a null)."""
    sought = np.flatnonzero(~np.asarray(verbatim, bool))
    if len(training) < 2 or not len(sought):
        return [], {}
    asked, kept, found, thresholds = squares([pictures[i] for i in sought]), squares(training), [], {}
    for name, kind in KINDS.items():
        threshold, copies = _copies(kind, asked, kept, quantile)
        thresholds |= {} if threshold is None else {name: threshold}
        found += [PartialMatch(int(sought[i]), name, *match) for i, *match in copies]
    return sorted(found, key=lambda f: -f.similarity), thresholds


def squares(openers):
    """-> (n, 64, 64, 3) uint8: all that is kept of each picture."""
    found = np.empty((len(openers), SIDE, SIDE, 3), np.uint8)
    for i, open_one in enumerate(openers):
        found[i] = square(open_one(), SIDE, Image.BOX)
    return found


def _copies(kind, asked, kept, quantile):
    """Squares -> the kind's threshold, None without a null; [(which of `asked`,
    similarity, row, Regions)]."""
    views = _views(kind.kept, kept)
    compared = np.unique(np.linspace(0, len(kept) - 1, min(len(kept), COMPARED)).round().astype(int))
    null, _, holds = _similarity(kind, _views(kind.asked, kept[compared]), views, compared)
    if not holds.any():
        return None, []
    threshold, questions, found = copy_threshold(null[holds], quantile), _views(kind.asked, asked), []
    if threshold <= 0:  # no two training images hold anything of this kind: what holds nothing resembles nothing
        return None, []
    similarity, rows, holds = _similarity(kind, questions, views)
    for i in np.flatnonzero((similarity >= threshold) & holds):
        row, closest, pairs = _match(kind, [q[i] for q in questions], views, np.unique(rows[:, i]), threshold)
        regions = [kind.regions(asked[i], kept[row], pair) for pair in pairs]
        found.append((i, closest, row, tuple(Regions(*r) for r in regions if r)))
    return threshold, found


def _views(of, pictures):
    """-> a list of (n, d) float16, few pictures in float32 at a time."""
    chunks = [[x.astype(np.float16) for x in of(pictures[i:i + CHUNK])] for i in range(0, len(pictures), CHUNK)]
    return [np.concatenate(of_one_view) for of_one_view in zip(*chunks, strict=True)]


def _similarity(kind, asked, kept, own=None):
    """-> (n,) similarity to the nearest training image by the best pair of views; (pairs, n) the nearest's row by each; (n,)
    whether a picture holds anything for this kind."""
    found = [nearest(asked[a], kept[k], own=own, score=kind.score) for a, k in kind.pairs]
    return np.max([s[:, 0] for s, _ in found], 0), np.stack([r[:, 0] for _, r in found]), np.any([x.any(1) for x in asked], 0)


def _match(kind, asked, kept, rows, threshold):
    """Views (d,) of one picture, the training images that are nearest by any -> the one that shares most views: its row, its
    similarity, the pairs of views that it shares."""
    scored = np.stack([_scores(kind, asked[a], kept[k][rows]) for a, k in kind.pairs], 1)  # (rows, pairs)
    best = max(range(len(rows)), key=lambda r: ((scored[r] >= threshold - ROUNDING).sum(), scored[r].max()))
    similarity = float(scored[best].max())
    shared = np.flatnonzero(scored[best] >= min(threshold, similarity) - ROUNDING)
    return int(rows[best]), min(similarity, 1.0), [kind.pairs[i] for i in shared]


def _scores(kind, one, several):
    """(d,), (n, d) float16 -> (n,)."""
    query, reference = (torch.from_numpy(x.astype(np.float32)) for x in (one[None], several))
    return kind.score(query, reference, torch.empty(1, len(reference)))[0].numpy()
