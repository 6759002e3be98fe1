"""A verified match: one transform lays a training picture on a generated one. What it covers follows from the transform.

Coordinates are shares of a whole picture, in its own shape: x from 0 (left) to 1 (right), y from 0 (top) to 1 (bottom).
"""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

WHOLE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
COPY_SHARE = 0.5       # of the training picture, from which a match is a copy; less is a partial copy
FILLED_SHARE = 1 / 3   # of the generated picture, that a copy fills at least; less is a partial copy

Point = tuple[float, float]


@dataclass(frozen=True)
class Match:
    """What a verifier found when it laid one training picture on one generated picture."""
    row: int                     # of the training picture
    verifier: str                # "points" or "pixels"
    score: float                 # higher is surer; by its verifier's own measure, to be held against that verifier's null
    transform: tuple[float, float, float, float, float, float]  # (a, b, c, d, e, f): training (x, y) lies at
    #                                                     generated (a x + b y + c, d x + e y + f)
    training_share: float        # of the training picture's area, for which the pixels bear the match out
    generated_share: float       # of the generated picture's area, the same
    mirrored: bool = False
    recoloured: bool = False     # its colours are others
    points: tuple[tuple[Point, Point], ...] = ()  # some matched points: in the generated picture, in the training picture

    @property
    def is_copy(self):
        """A copy covers half of the training picture or more, and fills a third of the generated one; else a part is copied."""
        return self.training_share >= COPY_SHARE and self.generated_share >= FILLED_SHARE


class Verifier(Protocol):
    """One way to lay pictures on one another. It is made from the training pictures, in the order of the index."""
    name: str
    same: float                  # the score from which two pictures that are copies of each other are one picture
    usual: tuple[float, float]   # what one in ten pictures that copy nothing exceeds, and how much more divides that by e

    def prepare(self, image: Image.Image) -> Any:
        """All that is kept of a generated picture, RGB, in its own shape."""

    def candidates(self, prepared: Any, k: int, without: Iterable[int] = ()) -> list[int]:
        """At most k rows of training pictures that may match, the likeliest first; never one of `without`."""

    def verify(self, prepared: Any, rows: Sequence[int], without: Iterable[int] = ()) -> list[Match]:
        """The best Match with each of these rows, where there is any; no threshold is applied, and what chance brings
        comes too. `without`: rows that are not to serve as other pictures to compare with either."""


@dataclass(frozen=True)
class MatchThreshold:
    """From which score on one verifier's matches count, and how often chance brings one."""
    verifier: str
    threshold: float
    rule: str                    # where the threshold comes from, in plain words
    n: int                       # pictures that copy nothing, of which chance is a share
    chance: float                # for such a share of them some match is verified


@dataclass(frozen=True)
class SharedElement:
    """What several training pictures have in common, such as a logo or a border: a match of it alone counts for nothing."""
    rows: tuple[int, ...]        # of the training pictures
    images: tuple[int, ...]      # positions of the generated pictures in which it was found
    region: tuple[Point, ...]    # a polygon in the first of the training pictures


@dataclass(frozen=True)
class VerifiedMatches:
    """All that was verified of the generated pictures, in their order."""
    # of each, the surest first: only those above their verifier's threshold, and not of shared elements alone
    matches: tuple[tuple[Match, ...], ...]
    thresholds: dict[str, MatchThreshold]  # by verifier; empty where none could be applied, and so nothing was sought
    shared: tuple[SharedElement, ...] = ()


def chance_of_match(thresholds: Iterable[MatchThreshold]) -> float:
    """Such a share of pictures that copy nothing has a verified match. Verifiers are judged together, so each says the same."""
    return max((t.chance for t in thresholds), default=0.0)


def outlines(transform) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    """Where the two pictures overlap -> a polygon in the generated picture, and the same in the training picture.

    Both are empty where they do not overlap.
    """
    a, b, c, d, e, f = transform
    forward = np.array([[a, b], [d, e]])
    laid = [tuple(forward @ corner + (c, f)) for corner in np.array(WHOLE)]
    inside = _clipped(laid)
    if len(inside) < 3 or abs(np.linalg.det(forward)) < 1e-9:
        return (), ()
    back = np.linalg.inv(forward)
    theirs = [np.clip(back @ (np.array(p) - (c, f)), 0, 1) for p in inside]
    return tuple((float(x), float(y)) for x, y in inside), tuple((float(x), float(y)) for x, y in theirs)


def _clipped(polygon):
    """A polygon cut by the unit square (Sutherland and Hodgman 1974)."""
    for axis, limit, sign in ((0, 0.0, 1), (0, 1.0, -1), (1, 0.0, 1), (1, 1.0, -1)):
        kept = []
        for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            inside, next_inside = sign * (p[axis] - limit) >= 0, sign * (q[axis] - limit) >= 0
            if inside:
                kept.append(p)
            if inside != next_inside:
                share = (limit - p[axis]) / (q[axis] - p[axis])
                kept.append(tuple(p[k] + share * (q[k] - p[k]) for k in range(2)))
        polygon = kept
    return polygon


def area(polygon) -> float:
    """Of a polygon, as a share of the picture."""
    if len(polygon) < 3:
        return 0.0
    x, y = np.array(polygon).T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def in_words(match: Match) -> str:
    """What happened to the training picture: 'mirrored, turned by 10°, 0.8 of it, colours changed'."""
    a, b, _, d, e, _ = match.transform
    turned = np.degrees(np.arctan2(d, -a if match.mirrored else a))
    told = ["mirrored"] if match.mirrored else []
    told += [f"turned by {abs(round(turned))}°"] if abs(round(turned)) >= 3 else []
    told += [f"{match.training_share:.2g} of it"] if match.training_share < 0.95 else []
    told += [f"filling {match.generated_share:.2g} of the image"] if match.generated_share < 0.95 else []
    told += ["colours changed"] if match.recoloured else []
    return ", ".join(told) or "as it is"
