"""Retrieve, then verify: which training pictures a generated picture copies, and what chance brings.

For each generated picture few candidates come from the whole training set: the calibrated descriptor's nearest, of the
picture, of its mirror image and of the squares of a long one, and what each verifier's own retrieval proposes. Each
verifier then lays them on the picture. Training pictures, against the others, and held-out ones go the same way: their
best scores are the null that a match must exceed.
"""
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from rotescope.datasets.geometry.match import Match, VerifiedMatches, Verifier
from rotescope.datasets.geometry.near_copies import is_same_picture, make_verifiers, one_torch_thread
from rotescope.datasets.images.sampling import evenly_spread
from rotescope.evaluate.descriptors.square_views import square_view, square_views, view_sha256
from rotescope.evaluate.neighbours.nearest import nearest
from rotescope.evaluate.verification.evidence import Evidence, drawn_evidence
from rotescope.evaluate.verification.shared_elements import elements_apart

NEAREST = 2      # candidates by the descriptor, of each view of a picture
PROPOSED = 6     # candidates by each verifier's own retrieval
CROSSED = 2      # of each verifier's best matches, those that the others look at, too
NULL = 200       # training pictures, and held-out ones, whose scores make the null, at most
MATCHED = 2.5    # times as many matches as likenesses of whole pictures may be chance: at .999 one picture in 400
QUERIES = 8      # pictures that are held, and whose candidates are looked up, together


@dataclass(frozen=True)
class Asked:
    """A picture that is laid on training pictures."""
    opener: Callable[[], Image.Image]
    sha256: str
    without: frozenset[int] = frozenset()  # rows that it is not laid on: itself and its twins
    expected: int | None = None            # the row that its prompt belongs to, a candidate always


class Matcher:
    """Lays pictures on the training pictures of an index.

    Parameters
    ----------
    index : Index
        Of the calibrated descriptor.
    twins : Twins
        Which training pictures are the same in other bytes.
    verifiers : sequence of Verifier
        Made from the pictures of the index, in its order.
    """

    def __init__(self, index, twins, verifiers: Sequence[Verifier]):
        self.index, self.twins, self.verifiers = index, twins, verifiers
        self.evidence = Evidence({v.name: v.usual for v in verifiers})

    def verified(self, pictures, expected=(), on_image=None) -> VerifiedMatches:
        """Generated pictures as [(SHA-256, what opens the picture)], and the row that the prompt of each belongs to, None where
        that is unknown -> VerifiedMatches above the thresholds."""
        asked = [Asked(opener, sha, expected=row)
                 for (sha, opener), row in zip(pictures, expected or [None] * len(pictures), strict=True)]
        found = [self.evidence.surest(matches) for matches in self._matches(asked, on_image)]
        matches, shared = elements_apart(found, self.evidence.threshold, self.twins.clusters)
        return VerifiedMatches(matches, self.evidence.thresholds, shared)

    def most_evident(self, pictures) -> list[Match | None]:
        """Of each picture its surest match with any training picture, whether it counts or not."""
        asked = [Asked(opener, sha) for sha, opener in pictures]
        return [max(self.evidence.weighed(matches), key=lambda m: m.score, default=None) for matches in self._matches(asked)]

    # ----- what chance brings

    def draw_thresholds(self, heldout=(), quantile=0.999, on_image=None) -> None:
        """Calibrate each verifier on training pictures, against the others, and on held-out ones, [(SHA-256, what opens
        the picture)]; learn which training pictures are copies of each other."""
        rows, examples = evenly_spread(len(self.index), NULL), self.index.examples
        trained = [Asked(examples[row].open, examples[row].sha256, frozenset(self.twins.clusters.get(row, {row})) | {row})
                   for row in rows]
        held = [Asked(heldout[i][1], heldout[i][0]) for i in evenly_spread(len(heldout), NULL)]
        of_training = [self._apart(int(row), matches)
                       for row, matches in zip(rows, self._matches(trained, on_image), strict=True)]
        of_heldout = list(self._matches(held, on_image))
        usual = {v.name: v.usual for v in self.verifiers}
        self.evidence = drawn_evidence(usual, of_training, of_heldout, 1 - MATCHED * (1 - quantile))

    def _apart(self, row, matches):
        """Matches of a training picture less those with pictures that it is a copy of."""
        same = {m.row for m in matches if is_same_picture(m, self.verifiers)}
        for other in same:
            self.twins.join(row, other)
        return [m for m in matches if m.row not in same]

    # ----- candidates and matches

    def _matches(self, asked, on_image=None):
        """-> for each picture its raw matches, in order."""
        with one_torch_thread(), ThreadPoolExecutor(os.cpu_count()) as threads:
            for i in range(0, len(asked), QUERIES):
                part = asked[i:i + QUERIES]
                images = list(threads.map(lambda one: one.opener(), part))  # each is decoded once
                for matches in threads.map(self._of_one, part, images, self._nearest(part, images)):
                    yield matches
                    if on_image:
                        on_image()

    def _of_one(self, asked, image, near):
        own = [] if asked.expected is None else [asked.expected]
        prepared = {v.name: v.prepare(image) for v in self.verifiers}
        found = []
        for v in self.verifiers:
            rows = dict.fromkeys([*own, *near, *v.candidates(prepared[v.name], PROPOSED, asked.without)])
            found.append(v.verify(prepared[v.name], list(rows), asked.without))
        best = dict.fromkeys(m.row for matches in found for m in sorted(matches, key=lambda m: -m.score)[:CROSSED])
        for v, matches in zip(self.verifiers, found, strict=True):
            seen = {m.row for m in matches}
            matches += v.verify(prepared[v.name], [row for row in best if row not in seen], asked.without)
        return [m for matches in found for m in matches]

    def _nearest(self, asked, images):
        """-> for each picture the rows that are nearest by the descriptor, of any of its views."""
        views = [(k, name) for k, image in enumerate(images) for name in square_views(image.size)]
        vectors = self.index.embed([(view_sha256(asked[k].sha256, name), partial(square_view, images[k], name))
                                    for k, name in views])
        most = NEAREST + max((len(one.without) for one in asked), default=0)
        _, rows = nearest(vectors, self.index.vectors, k=min(most, len(self.index)))
        found: list[list[int]] = [[] for _ in asked]
        for (k, _), line, vector in zip(views, rows, vectors, strict=True):
            if vector.any():
                found[k] += [int(row) for row in line if int(row) not in asked[k].without][:NEAREST]
        return found


def null_size(n: int) -> int:
    """How many of n pictures make a null."""
    return min(n, NULL)


def make_matcher(layer, how, on_image=None) -> Matcher | None:
    """The calibrated Layer, Measuring -> a Matcher of its index; None where verifying is off. The training pictures' features
    lie beside their descriptors where how.index_dir keeps these. on_image: called for each picture that is prepared."""
    if not how.verify:
        return None
    shas, openers = zip(*((e.sha256, e.open) for e in layer.index.examples), strict=True)
    folder = how.index_dir and Path(how.index_dir) / "geometry"
    return Matcher(layer.index, layer.twins, make_verifiers(shas, openers, folder, on_image))
