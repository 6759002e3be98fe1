"""Copies by local features: geometric verification, which sees through crops, turns, collages and paste-ins.

A feature of the generated picture counts as matched if a training picture holds one that is clearly nearer
than what *other* pictures hold. Comparing with other pictures, not with the second-nearest place of the same
picture, is what makes an element that many pictures share (a wall of bricks, a logo) count little. Pictures
that look the same as the training picture as a whole are no others. One transform then has to explain the
matches. The score is the weight of its inliers at distinct places, less where the rest of what the transform
lays on one another differs: the same word in two pages, or the same roof twice, is a weaker sign than a copy.
"""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from rotescope.datasets.geometry.borne_out import borne_out
from rotescope.datasets.geometry.feature_store import FeatureMemory, FeatureStore, Opener
from rotescope.datasets.geometry.feature_votes import FeatureVotes, NearWords, unit_rows
from rotescope.datasets.geometry.local_features import (
    GENERATED_MOST,
    THUMBNAIL,
    LocalFeatures,
    feature_numbers,
    local_features,
    mirror_image,
)
from rotescope.datasets.geometry.match import Match
from rotescope.datasets.geometry.point_transform import MatchedPoints, PointTransform, point_transform

RATIO, SURE = 0.92, 0.6   # of distances, to that to others: a match counts nothing, or fully
SAMPLED = 0.08            # distance that resampling alone brings: what is nearer than another by less is no nearer
RIVALS = 8                # the likeliest pictures: a match is compared with them and with the words
TWIN = 0.95               # correlation of two training pictures as a whole, from which they are one picture
TWIN_SIDE = 8             # pixels a side that this is told from
AGREEING, LEAST = 0.8, 0.4  # share of the overlap that agrees, from which a score is whole; the least that is left
SHOWN = 24                # inliers that a Match names


@dataclass(frozen=True)
class PreparedPoints:
    """What is kept of a generated picture: the features of it and of its mirror image, and their nearest
    words."""
    sides: tuple[LocalFeatures, LocalFeatures]
    near: tuple[NearWords, NearWords]
    ranked: dict = field(default_factory=dict)  # rows that were left out -> the candidates among the others


class PointVerifier:
    """A Verifier of training pictures, in the order of the index. Their features are kept in folder/points,
    if any."""
    name, same, usual = "points", 15.0, (1.0, 1.5)

    def __init__(self, shas: Sequence[str], openers: Sequence[Opener], folder=None, on_image=None):
        """shas: hexadecimal SHA-256 of each picture; openers: what opens it as RGB; on_image: called once for
        each."""
        kept_at = Path(folder) / "points" if folder else None
        self._kept = (FeatureStore(kept_at) if kept_at else FeatureMemory()).keep(shas, openers, on_image)
        self._votes = FeatureVotes(self._kept, kept_at / "words.u16" if kept_at else None)
        self._looks = _looks(self._kept)

    def prepare(self, image: Image.Image) -> PreparedPoints:
        """All that is kept of a generated picture, RGB, in its own shape."""
        features = local_features(image, GENERATED_MOST)
        sides = (features, mirror_image(features))
        near = [self._votes.near_words(side.descriptors) for side in sides]
        return PreparedPoints(sides, (near[0], near[1]))

    def candidates(self, prepared: PreparedPoints, k: int, without: Iterable[int] = ()) -> list[int]:
        """At most k rows of training pictures that share rare features with it, those with most votes
        first."""
        without = frozenset(without)
        if without not in prepared.ranked:
            both = zip(prepared.sides, prepared.near, strict=True)
            sides = [self._votes.ranked(side, near, tuple(without)) for side, near in both]
            rows, agreement = (np.concatenate(part) for part in zip(*sides, strict=True))
            prepared.ranked[without] = list(dict.fromkeys(rows[np.lexsort((rows, -agreement))].tolist()))
        return prepared.ranked[without][:k]

    def verify(self, prepared: PreparedPoints, rows: Sequence[int],
               without: Iterable[int] = ()) -> list[Match]:
        """The best Match with each of these rows, where three matched places agree in one transform. Which
        other rows are asked for changes nothing."""
        if not len(rows) or not len(prepared.sides[0]):
            return []
        without = frozenset(without)
        others = self._others(prepared, without)
        held_by = [self._votes.word_rows[near.words].ravel() for near in prepared.near]
        seen = np.unique(np.concatenate([*held_by, [row for row, _ in others[0]]])).astype(np.int64)
        looks = self._looks[seen]  # of the pictures that a match is compared with
        found = (self._match(prepared, row, others, without | self._twins(row, seen, looks)) for row in rows)
        return [match for match in found if match is not None]

    def _others(self, prepared, without):
        """-> for each side [(row, (n,) the greatest similarity of each feature to what that row holds)] of
        its rivals."""
        rivals = self.candidates(prepared, RIVALS, without)
        held = {row: unit_rows(self._kept.descriptors(row)) for row in rivals}
        return [[(row, (unit_rows(side.descriptors) @ theirs.T).max(1)) for row, theirs in held.items()]
                for side in prepared.sides]

    def _twins(self, row, seen, looks):
        """-> the row, and those that look the same as a whole."""
        return {int(row), *seen[looks @ self._looks[row] >= TWIN].tolist()}

    def _match(self, prepared, row, others, same):
        kept, same, best = self._kept[row], np.array(sorted(same)), None
        if not len(kept):
            return None
        for mirrored, side in enumerate(prepared.sides):
            background = self._background(prepared.near[mirrored], others[mirrored], same)
            points, pairs = _matched(kept, side, background)
            found = point_transform(points)
            if found is not None and (best is None or found.score > best[0].score):
                best = found, pairs, bool(mirrored)
        return _as_match(int(row), kept, prepared.sides[0], *best) if best else None

    def _background(self, near, rivals, same):
        """-> (n,) the greatest similarity of each feature to what pictures hold that are not the `same`."""
        others = ~np.isin(self._votes.word_rows[near.words], same)
        best = np.where(others, near.similarity, -1).max(1, initial=-1)
        if near.words.shape[1] < len(self._votes.words):  # the other words are no nearer
            best = np.where(others.any(1), best, near.similarity[:, -1])
        for row, similarity in rivals:
            best = best if row in same else np.maximum(best, similarity)
        return best


def _distance(similarity):
    return np.sqrt(np.maximum(2 - 2 * similarity, 0))


def _matched(kept, side, background):
    """-> MatchedPoints, and (n, 2) which features of the two they are."""
    similarity = unit_rows(side.descriptors) @ unit_rows(kept.descriptors).T
    nearest, near = similarity.argmax(1), _distance(similarity.max(1))
    ratio = (near + SAMPLED) / (_distance(background) + SAMPLED)
    weight = np.clip((RATIO - ratio) / (RATIO - SURE), 0, 1)
    at = np.flatnonzero(weight)
    points = MatchedPoints(feature_numbers(kept)[nearest[at]], feature_numbers(side)[at], weight[at])
    return points, np.stack([at, nearest[at]], 1)


def _looks(kept):
    """-> (m, 192) float32: each picture as a whole, centred, at length 1, or 0 where it is flat."""
    looks, of = np.zeros((len(kept), 3 * TWIN_SIDE ** 2), np.float32), THUMBNAIL // TWIN_SIDE
    for row in range(len(kept)):
        tiles = kept.thumbnail(row).reshape(TWIN_SIDE, of, TWIN_SIDE, of, 3)
        small = tiles.mean((1, 3), dtype=np.float32)
        centred = (small - small.mean((0, 1))).ravel()
        looks[row] = centred / max(np.linalg.norm(centred), 1e-6) * (centred.std() >= 1)
    return looks


def _as_match(row, kept, generated, found: PointTransform, pairs, mirrored):
    transform, pairs = _in_shares(found.matrix, kept.size, generated.size, mirrored), pairs[found.inliers]
    theirs, ours = generated.places[pairs[:, 0]].astype(float), kept.places[pairs[:, 1]].astype(float)
    borne = borne_out(kept.thumbnail, generated.thumbnail, transform, ours)
    shown = zip(theirs[:SHOWN].tolist(), ours[:SHOWN].tolist(), strict=True)
    points = tuple((tuple(p), tuple(q)) for p, q in shown)
    score = found.score * float(np.clip(borne.agreement / AGREEING, LEAST, 1))
    return Match(row, PointVerifier.name, score, transform, borne.training_share, borne.generated_share,
                 mirrored, borne.recoloured, points)


def _in_shares(matrix, size, generated_size, mirrored):
    """(2, 3), pixels to pixels of the generated picture or of its mirror image -> six numbers as in Match."""
    (a, b, c), (d, e, f) = matrix.tolist()
    (w, h), (width, height) = size, generated_size
    a, b, c = a * w / width, b * h / width, c / width
    a, b, c = (-a, -b, 1 - c) if mirrored else (a, b, c)
    return a, b, c, d * w / height, e * h / height, f / height
