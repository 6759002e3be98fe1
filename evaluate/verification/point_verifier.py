"""Copies found by local features: geometric verification, which sees through crops, turns, collages and paste-ins.

A feature of the generated picture counts as matched if a training picture holds one that is clearly nearer than what *other*
pictures hold. Comparing with other pictures, not with the second-nearest place of the same picture, is what makes an element
that many pictures share (a wall of bricks, a logo) count little. Pictures that look the same as the training picture as
a whole are no others. One transform then has to explain the matches, and its inliers at distinct places are the score.
"""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rotescope.evaluate.verification.borne_out import borne_out
from rotescope.evaluate.verification.feature_store import FeatureMemory, FeatureStore
from rotescope.evaluate.verification.feature_votes import FeatureVotes, NearWords, unit_rows
from rotescope.evaluate.verification.local_features import (
    GENERATED_MOST,
    LocalFeatures,
    in_pixels,
    local_features,
    mirror_image,
)
from rotescope.evaluate.verification.match import Match
from rotescope.evaluate.verification.point_transform import MatchedPoints, PointTransform, point_transform

RATIO, SURE = 0.92, 0.6   # distance over that to other pictures: from which a match counts nothing, and to which it counts fully
RIVALS = 8                # pictures with most votes that a candidate's features are compared with, besides the words
TWIN = 0.95               # correlation of two training pictures as a whole, from which they are one picture
TWIN_SIDE = 8             # pixels a side that this is told from
SHOWN = 24                # inliers that a Match names


@dataclass(frozen=True)
class PreparedPoints:
    """What is kept of a generated picture: the features of itself and of its mirror image, and their nearest words."""
    sides: tuple[LocalFeatures, LocalFeatures]
    near: tuple[NearWords, NearWords]


class PointVerifier:
    """A Verifier of training pictures, in the order of the index. With a folder, their features are kept in folder/points."""
    name = "points"

    def __init__(self, shas: Sequence[str], openers: Sequence[Callable[[], Image.Image]], folder=None, on_image=None):
        """shas: hexadecimal SHA-256 of each picture; openers: what opens it as RGB; on_image is called once for each."""
        store = FeatureStore(Path(folder) / "points") if folder else FeatureMemory()
        self._kept = store.keep(shas, openers, on_image)
        self._votes = FeatureVotes(self._kept)
        self._looks = _looks(self._kept)

    def prepare(self, image: Image.Image) -> PreparedPoints:
        """All that is kept of a generated picture, RGB, in its own shape."""
        features = local_features(image, GENERATED_MOST)
        sides = (features, mirror_image(features))
        return PreparedPoints(sides, (self._votes.near_words(sides[0].descriptors), self._votes.near_words(sides[1].descriptors)))

    def candidates(self, prepared: PreparedPoints, k: int, without: Iterable[int] = ()) -> list[int]:
        """At most k rows of training pictures that share rare features with it, those with most votes first."""
        sides = [self._votes.ranked(side, near, without) for side, near in zip(prepared.sides, prepared.near, strict=True)]
        rows, agreement = (np.concatenate(part) for part in zip(*sides, strict=True))
        ordered = rows[np.lexsort((rows, -agreement))]
        return [int(row) for row in dict.fromkeys(ordered.tolist())][:k]

    def verify(self, prepared: PreparedPoints, rows: Sequence[int], without: Iterable[int] = ()) -> list[Match]:
        """The best Match with each of these rows, where three matched places agree in one transform. No other row changes it."""
        if not rows or not len(prepared.sides[0]):
            return []
        without = frozenset(without)
        others = self._others(prepared, without)
        found = (self._match(prepared, row, others, without) for row in rows)
        return [match for match in found if match is not None]

    def _others(self, prepared, without):
        """-> for each side [(row, (n,) the greatest similarity of each feature to what that row holds)] of its rivals."""
        rivals = self.candidates(prepared, RIVALS, without)
        held = [unit_rows(self._kept.descriptors(row)) for row in rivals]
        return [[(row, (unit_rows(side.descriptors) @ one.T).max(1)) for row, one in zip(rivals, held, strict=True)]
                for side in prepared.sides]

    def _match(self, prepared, row, others, without):
        kept = self._kept[row]
        if not len(kept):
            return None
        same = without | {row, *np.flatnonzero(self._looks @ self._looks[row] >= TWIN).tolist()}
        best = None
        for mirrored, (side, near, rivals) in enumerate(zip(prepared.sides, prepared.near, others, strict=True)):
            points, pairs = self._matched(kept, side, near, rivals, same)
            found = point_transform(points)
            if found is not None and (best is None or found.score > best[0].score):
                best = found, pairs, bool(mirrored)
        return _as_match(row, kept, prepared.sides[0], *best) if best else None

    def _matched(self, kept, side, near, rivals, same):
        """-> MatchedPoints, and (n, 2) which features of the two they are."""
        similarity = unit_rows(side.descriptors) @ unit_rows(kept.descriptors).T
        nearest = similarity.argmax(1)
        ratio = _distance(similarity.max(1)) / np.maximum(_distance(self._background(near, rivals, same)), 1e-3)
        weight = np.clip((RATIO - ratio) / (RATIO - SURE), 0, 1)
        at = np.flatnonzero(weight)
        pairs = np.stack([at, nearest[at]], 1)
        return MatchedPoints(_numbers(kept)[pairs[:, 1]], _numbers(side)[pairs[:, 0]], weight[at]), pairs

    def _background(self, near, rivals, same):
        """-> (n,) the greatest similarity of each feature to what pictures hold that are not the `same`."""
        allowed = ~np.isin(self._votes.word_rows[near.words], list(same))
        lowest = near.similarity[:, -1] if near.similarity.shape[1] else np.zeros(len(near.words), np.float32)
        best = np.where(allowed.any(1), np.where(allowed, near.similarity, -1).max(1, initial=-1), lowest)
        for row, similarity in rivals:
            best = best if row in same else np.maximum(best, similarity)
        return best


def _distance(similarity):
    return np.sqrt(np.maximum(2 - 2 * similarity, 0))


def _numbers(features):
    """-> (n, 4): x, y, scale, angle."""
    return np.concatenate([in_pixels(features), features.scales[:, None], features.angles[:, None]], 1)


def _looks(kept):
    """-> (m, 192) float32: each picture as a whole, centred, at length 1, or 0 where it is flat."""
    side, looks = TWIN_SIDE, np.zeros((len(kept), 3 * TWIN_SIDE ** 2), np.float32)
    for row in range(len(kept)):
        small = kept.thumbnail(row).reshape(side, -1, side, kept.thumbnail(row).shape[1] // side, 3).mean((1, 3), dtype=np.float32)
        centred = (small - small.mean((0, 1))).ravel()
        looks[row] = centred / max(np.linalg.norm(centred), 1e-6) * (centred.std() >= 1)
    return looks


def _as_match(row, kept, generated, found: PointTransform, pairs, mirrored):
    (a, b, c), (d, e, f) = found.matrix
    (w, h), (width, height) = kept.size, generated.size
    a, b, c, d, e, f = a * w / width, b * h / width, c / width, d * w / height, e * h / height, f / height
    transform = tuple(float(v) for v in ((-a, -b, 1 - c, d, e, f) if mirrored else (a, b, c, d, e, f)))
    pairs = pairs[found.inliers]
    theirs, ours = generated.places[pairs[:, 0]].astype(float), kept.places[pairs[:, 1]].astype(float)
    borne = borne_out(kept.thumbnail, generated.thumbnail, transform, ours)
    points = tuple((tuple(p), tuple(q)) for p, q in zip(theirs[:SHOWN].tolist(), ours[:SHOWN].tolist(), strict=True))
    return Match(row, PointVerifier.name, found.score, transform, borne.training_share, borne.generated_share,
                 mirrored, borne.recoloured, points)
