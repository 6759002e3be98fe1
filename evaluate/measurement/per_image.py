"""Samples against an index: numbers for each image."""
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rotescope.datasets.geometry.match import VerifiedMatches, chance_of_match
from rotescope.evaluate.neighbours.index import features
from rotescope.evaluate.quality.alignment import caption_match


@dataclass(frozen=True)
class Matched:
    """By one layer, over the n images; NaN where a number does not apply."""
    top1: np.ndarray         # similarity to the nearest training image
    row: np.ndarray          # its row in the index
    own: np.ndarray          # similarity to the training image that the prompt belongs to
    threshold: float
    watched: np.ndarray      # (n, w) whether it copies each of the w training images that a rule names, nearest or not

    @property
    def copied(self):
        return (self.top1 >= self.threshold) & (self.top1 > 0)  # a vector of 0 resembles nothing

    @property
    def own_copied(self):
        """1, 0, or NaN where no training image is expected."""
        return np.where(np.isnan(self.own), np.nan, self.own >= self.threshold)


@dataclass(frozen=True)
class Measured:
    """A copy is what any of the layers says, the calibrated descriptor or the exact layer, which needs no learned weights; and
    what a verified match covers. An image that is no copy and has a verified match copies a part."""
    vectors: np.ndarray      # (n, d) by the calibrated descriptor
    layers: dict[str, Matched]
    alignment: np.ndarray    # cosine with the own caption
    hit: np.ndarray          # 1 where no other caption fits better
    features: np.ndarray     # (n, f) for fidelity; f = 0 without an alignment model
    watched_rows: np.ndarray  # (w,) of the training images that a rule names
    expected: np.ndarray     # (n,) row of the training image that the prompt belongs to, -1 where there is none
    verified: VerifiedMatches | None = None  # None where no match was sought

    @property
    def near(self):
        return self.layers["descriptor"]

    @cached_property
    def copied(self):
        return np.any([m.copied for m in self.layers.values()], axis=0) | np.array([bool(rows) for rows in self.verified_rows])

    @cached_property
    def partial(self):
        """(n,) whether an image that is no copy has a verified match."""
        return ~self.copied & np.array([bool(matches) for matches in self.matches])

    @cached_property
    def own_copied(self):
        """1, 0, or NaN where no training image is expected."""
        own = np.max([m.own_copied for m in self.layers.values()], axis=0)
        return np.where(self.own_verified, 1, own)

    @cached_property
    def identical(self):
        """Whether the exact layer says that it is the prompt's own training image, or any where none is expected; or a verified
        match that it is a copy of its own, which is as sure."""
        exact = self.layers.get("exact")
        same = np.where(np.isnan(exact.own), exact.copied, exact.own_copied == 1) if exact else False
        return self.own_verified | same

    @cached_property
    def row(self):
        """Of the training image that is copied, whole or in part, where one is; else of the nearest by the descriptor. A verified
        match tells it better than a descriptor's likeness, and less well than the exact layer."""
        row = self.near.row
        for m in self.layers.values():
            row = np.where(~self.near.copied & m.copied, m.row, row)
        exact = self.layers["exact"].copied if "exact" in self.layers else np.zeros(len(row), bool)
        return np.array([self._row(i, int(r)) if not e else int(r) for i, (r, e) in enumerate(zip(row, exact, strict=True))])

    def _row(self, i, nearest):
        if self.verified_rows[i]:
            return nearest if self.near.copied[i] and nearest in self.verified_rows[i] else self.verified_rows[i][0]
        return self.matches[i][0].row if self.partial[i] else nearest

    @property
    def watched(self):
        """(n, w) whether an image copies each training image that a rule names."""
        verified = np.stack([np.isin(self.watched_rows, rows) for rows in self.verified_rows])
        return np.any([m.watched for m in self.layers.values()], axis=0) | verified

    # ----- verified matches

    @property
    def matches(self):
        """Of each image, the surest first; none where none were sought."""
        return self.verified.matches if self.verified else ((),) * len(self.vectors)

    @cached_property
    def verified_rows(self):
        """Of each image: the training images that a verified match says it copies as a whole, the surest first."""
        return [tuple(m.row for m in matches if m.is_copy) for matches in self.matches]

    @cached_property
    def own_verified(self):
        """(n,) whether a verified match says that it copies the prompt's own training image."""
        return np.array([row in rows for row, rows in zip(self.expected, self.verified_rows, strict=True)], bool)

    @cached_property
    def own_matched(self):
        """(n,) the same, of any part of it."""
        return np.array([any(m.row == row for m in found) for row, found in zip(self.expected, self.matches, strict=True)], bool)

    @property
    def match_chance(self):
        """Share of pictures that copy nothing for which chance alone brings a verified match."""
        return chance_of_match(self.verified.thresholds.values()) if self.verified else 0.0

    def copied_by(self, i):
        """Which layers and which verifiers say that an image is a copy."""
        verifiers = (m.verifier for m in self.matches[i] if m.is_copy)
        return tuple(dict.fromkeys((*(name for name, m in self.layers.items() if m.copied[i]), *verifiers)))

    def shown_match(self, i):
        """The Match with the training image that stands beside an image, else its surest; None where it has none."""
        return next((m for m in self.matches[i] if m.row == self.row[i]), next(iter(self.matches[i]), None))


def measure(samples, layers, manifest, aligner=None, on_image=None, watched=(), verified=None):
    """Every generated image against each Layer, {"descriptor": …, perhaps "exact": …}, and against its caption -> Measured.

    watched: ids of training images that each is compared with, though another may be nearer. verified: VerifiedMatches of the
    same images, or None.
    """
    vectors, matched, known = {}, {}, layers["descriptor"].index.rows
    expected = np.array([known.get(r.image_id, -1) for r in samples.records])
    rows = np.unique([known[image_id] for image_id in watched]).astype(np.int64)
    for name, layer in layers.items():
        key = layer.index.descriptor.name
        if key not in vectors:
            vectors[key] = layer.index.embed(samples.pictures, None if vectors else on_image)
        matched[name] = _matched(expected, vectors[key], layer, rows)
    seen = features([opener for _, opener in samples.pictures], aligner)
    alignment, hit = _aligned(samples.records, manifest, aligner, seen)
    return Measured(vectors[layers["descriptor"].index.descriptor.name], matched, alignment, hit, seen, rows, expected,
                    verified if verified and verified.thresholds else None)


def _matched(expected, vectors, layer, watched):
    similarity, row = layer.index.nearest(vectors)
    own = np.full(len(expected), np.nan)
    known = np.flatnonzero(expected >= 0)
    if len(known):
        own[known] = np.clip((vectors[known] * layer.index.vectors[expected[known]]).sum(1), -1, 1)
    return Matched(similarity.astype(np.float64), row, own, layer.threshold, _copies_of(watched, vectors, layer))


def _copies_of(rows, vectors, layer, block=256):
    """Which of the rows each image copies -> (n, w) bool, a block of them at a time."""
    every = vectors[:]
    found = [every @ layer.index.vectors[rows[i:i + block]].T >= layer.threshold for i in range(0, len(rows), block)]
    return np.concatenate(found, axis=1) if found else np.zeros((len(vectors), 0), bool)


def _aligned(records, manifest, aligner, seen):
    """-> alignment (n,) and hit (n,), best of prompts and training captions; any caption of the own image is right."""
    alignment, hit = np.full(len(records), np.nan), np.full(len(records), np.nan)
    told = [i for i, r in enumerate(records) if r.prompt]
    if not aligner or not told:
        return alignment, hit
    prompts = [records[i].prompt for i in told]
    place = {c: i for i, c in enumerate(dict.fromkeys([*prompts, *(e.captions[0] for e in manifest if e.captions)]))}
    captions = {e.image_id: e.captions for e in manifest}
    right = [{place.get(c) for c in (records[i].prompt, *captions.get(records[i].image_id, ()))} for i in told]
    texts = aligner.texts(list(place))
    alignment[told], hit[told] = caption_match(seen[told], texts[[place[p] for p in prompts]], texts, right)
    return alignment, hit
