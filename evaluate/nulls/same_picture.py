"""The same picture in other bytes, encoded anew or resized: among training images, and between held-out and training pictures.

How alike two such are is no chance. In the background they would lift the threshold above every copy of either, and a held-out
picture that is one was trained on. Pictures that are merely alike stay: they are what chance does (similar.same_picture).

Only the most similar pairs are looked at, the others decide nothing: a threshold is drawn through the highest tenth of the
similarities, and those are settled. So of 100,000 training images, of which 10,000 are asked, two thousand are opened.
"""
import math
from functools import partial

import numpy as np

from rotescope.datasets.images.near_duplicates import same_picture, thumbnail
from rotescope.evaluate.neighbours.nearest import nearest, nearest_other
from rotescope.evaluate.nulls.copy_threshold import INNER

FEW = 50       # the highest similarities that are settled at least
ALIKE = 0.5    # similarity that the same picture in other bytes always has
LOOKS = 5_000  # pairs that are looked at, at most


class Twins:
    """What is known of one training set's pictures, whichever descriptor asked."""

    def __init__(self, examples, looks=LOOKS):
        self.examples, self.looks, self.left = examples, looks, looks
        self.clusters = {}        # row -> the rows of the same picture, a set that all of them share
        self.heldout = {}         # SHA-256 of a held-out picture -> row of the training image that it is
        self._thumbnails, self._told = {}, {}

    # ----- among training images

    def background(self, vectors, quantile=0.999):
        """vectors (m, d) -> similarity of each training image to its nearest other picture, as nearest.nearest_other; those
        that have none are left out, and those whose vector is 0, which resemble nothing."""
        rows, similarity, near = nearest_other(vectors)
        similarity[[not vectors[i:i + 1].any() for i in rows]] = -np.inf
        while again := [i for i in highest(similarity, quantile) if self.same(int(rows[i]), int(near[i]))]:
            similarity[again], near[again] = self._outside(vectors, rows[again])
        return similarity[~np.isneginf(similarity)]

    def same(self, i, j):
        """Whether two rows show the same picture, perhaps through others that do."""
        if j not in self.clusters.get(i, ()) and self._looked((min(i, j), max(i, j)), self._row(i), self._row(j)):
            self.join(i, j)
        return j in self.clusters.get(i, ())

    def join(self, i, j):
        """Two rows show the same picture."""
        joined = self.clusters.get(i, {i}) | self.clusters.get(j, {j})
        self.clusters |= dict.fromkeys(joined, joined)

    def _outside(self, vectors, rows):
        """-> similarity and row of the nearest to each that is no twin of it; -inf where all are. c rows of one picture have
        c − 1 others among them, so that the c nearest hold one outside."""
        own = [self.clusters[int(row)] for row in rows]
        similarity, near = nearest(vectors[rows], vectors, max(map(len, own)), own=rows)
        other = np.array([[int(j) not in twins for j in line] for line, twins in zip(near, own, strict=True)])
        at, lines = other.argmax(1), np.arange(len(rows))
        return np.where(other[lines, at], similarity[lines, at], -np.inf), near[lines, at]

    # ----- held-out pictures

    def find_heldout(self, pictures, similarity, row, quantile=0.999):
        """pictures: n of (SHA-256, what opens it); the similarity (n,) and row (n,) of the training image nearest to each.
        Remembers which are the same picture."""
        left = enough(len(pictures), quantile)
        for i in np.argsort(-similarity, kind="stable"):
            (sha, opener), j = pictures[i], int(row[i])
            if similarity[i] < ALIKE:
                break
            if self._looked((sha, j), partial(self._thumbnail, sha, opener), self._row(j)):
                self.heldout.setdefault(sha, j)
            elif not (left := left - 1):
                break

    def kept(self, pictures):
        """-> (n,) bool: which held-out pictures were not trained on."""
        return np.array([sha not in self.heldout for sha, _ in pictures], bool)

    # ----- looking

    def _looked(self, pair, *pictures):
        """Whether a pair is one picture; `pictures` are opened the first time only."""
        if pair not in self._told and self.left:
            self.left -= 1
            (one, side), (other, other_side) = (look() for look in pictures)
            self._told[pair] = same_picture(one, other, min(side, other_side))
        return self._told.get(pair, False)

    def _row(self, row):
        return partial(self._thumbnail, self.examples[row].sha256, self.examples[row].open)

    def _thumbnail(self, sha, opener):
        if sha not in self._thumbnails:
            image = opener()
            self._thumbnails[sha] = thumbnail(image), min(image.size)
        return self._thumbnails[sha]

    # ----- what a reader must know

    def notes(self):
        pictures = {min(rows): sorted(rows) for rows in self.clusters.values()}
        if pictures:
            n, (first, second, *_) = sum(len(rows) - 1 for rows in pictures.values()), pictures[min(pictures)]
            several = "training images were found to repeat others" if n > 1 else "training image was found to repeat another"
            yield (f"{n:,} {several} in other bytes: {self.examples[second].name} is {self.examples[first].name}"
                   f"{f' (and {n - 1:,} more)' if n > 1 else ''}. Their likeness is left out of what thresholds rest on; "
                   "rotescope preflight lists them.")
        if not self.left:
            yield (f"Only the {self.looks:,} most similar pairs were looked at for the same picture in other bytes: the "
                   "threshold may be too high. rotescope preflight --deduplicate true leaves one image of each.")


def highest(similarity, quantile):
    """-> positions of those that settle a threshold."""
    order = np.argsort(-similarity, kind="stable")[:enough(len(similarity), quantile)]
    return order[similarity[order] >= ALIKE]


def enough(n, quantile):
    """How many of n similarities lie at or above their quantile, and at least FEW."""
    return max(math.ceil((1 - min(quantile, INNER)) * n) + 1, FEW)
