"""Samples against an index: numbers for each image."""
from dataclasses import dataclass
from functools import cached_property

import numpy as np

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
        return self.top1 >= self.threshold

    @property
    def own_copied(self):
        """1, 0, or NaN where no training image is expected."""
        return np.where(np.isnan(self.own), np.nan, self.own >= self.threshold)


@dataclass(frozen=True)
class Measured:
    """A copy is what any of the layers says: the calibrated descriptor, or the exact layer, which needs no learned weights."""
    vectors: np.ndarray      # (n, d) by the calibrated descriptor
    layers: dict[str, Matched]
    alignment: np.ndarray    # cosine with the own caption
    hit: np.ndarray          # 1 where no other caption fits better
    features: np.ndarray     # (n, f) for fidelity; f = 0 without an alignment model
    watched_rows: np.ndarray  # (w,) of the training images that a rule names

    @property
    def near(self):
        return self.layers["descriptor"]

    @cached_property
    def copied(self):
        return np.any([m.copied for m in self.layers.values()], axis=0)

    @cached_property
    def own_copied(self):
        return np.max([m.own_copied for m in self.layers.values()], axis=0)

    @cached_property
    def identical(self):
        """Whether the exact layer says that it is the prompt's own training image, or any where none is expected."""
        exact = self.layers.get("exact")
        return np.where(np.isnan(exact.own), exact.copied, exact.own_copied == 1) if exact else np.zeros(len(self.vectors), bool)

    @cached_property
    def row(self):
        """Of the training image that is copied, where one is; else of the nearest by the descriptor."""
        row = self.near.row
        for m in self.layers.values():
            row = np.where(~self.near.copied & m.copied, m.row, row)
        return row

    @property
    def watched(self):
        """(n, w) whether an image copies each training image that a rule names."""
        return np.any([m.watched for m in self.layers.values()], axis=0)


def measure(samples, layers, manifest, aligner=None, on_image=None, watched=()):
    """Every generated image against each Layer, {"descriptor": …, perhaps "exact": …}, and against its caption -> Measured.

    watched: ids of training images that each is compared with, though another may be nearer.
    """
    vectors, matched = {}, {}
    rows = np.unique([layers["descriptor"].index.rows[image_id] for image_id in watched]).astype(np.int64)
    for name, layer in layers.items():
        key = layer.index.descriptor.name
        if key not in vectors:
            vectors[key] = layer.index.embed(samples.pictures, None if vectors else on_image)
        matched[name] = _matched(samples.records, vectors[key], layer, rows)
    seen = features([opener for _, opener in samples.pictures], aligner)
    alignment, hit = _aligned(samples.records, manifest, aligner, seen)
    return Measured(vectors[layers["descriptor"].index.descriptor.name], matched, alignment, hit, seen, rows)


def _matched(records, vectors, layer, watched):
    similarity, row = layer.index.nearest(vectors)
    expected = np.array([layer.index.rows.get(r.image_id, -1) for r in records])
    own = np.full(len(records), np.nan)
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
