"""Matched points -> the one transform that explains the most of them.

A feature has a place, a scale and an angle, so a single match already says how the picture was shifted,
resized and turned. Each of the best matches is tried as such a guess, and what agrees with it in place, scale
and angle is counted: RANSAC (Fischler and Bolles 1981) with samples of one match, every one of which is
drawn. So chance has no part in it. The best guesses are refined by least squares over what agrees: with an
affine transform where many matches say so and it stays plausible, else with a similarity.
"""
from dataclasses import dataclass

import numpy as np

GUESSES = 96            # matches that are tried, those of the greatest weight first
REFINED = 6             # guesses that are refined
SCALES = 8.0            # a picture is enlarged or reduced by this factor at most
ANISOTROPY = 1.7        # of an affine transform, at most: how much more it enlarges one way than another
SCALE_RATIO, ANGLE = 1.6, 25.0   # how far a feature's own scale (a factor) and angle (degrees) may be off
NEAR, PER_DISTANCE = 6.0, 0.15   # pixels that a guess may err, and more by this share of the distance
TOLERANCES = (12.0, 7.0, 4.5)       # pixels, in the rounds of refinement
PLACE = 10.0            # pixels: points nearer than this are not counted as two


@dataclass(frozen=True)
class MatchedPoints:
    """n matches. training and generated: (n, 4) float32 each: x, y and scale in pixels, angle in degrees;
    weight: (n,), 0 to 1."""
    training: np.ndarray
    generated: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class PointTransform:
    """matrix: (2, 3), pixels of the training picture to those of the generated one; inliers: which matches it
    explains, one a place, those of the greatest weight first; score: the sum of their weights."""
    matrix: np.ndarray
    inliers: np.ndarray
    score: float


def point_transform(points: MatchedPoints) -> PointTransform | None:
    """The best there is; None where no three matches at distinct places agree."""
    if len(points.weight) < 3:
        return None
    found = [one for one in (_refined(points, inside) for inside in _guessed(points)) if one is not None]
    return max(found, key=lambda one: one.score, default=None)


def _guessed(points):
    """-> for each of the best guesses which matches agree with it, (n,) bool."""
    order = np.argsort(-points.weight, kind="stable")[:GUESSES]
    t, g = points.training, points.generated
    scale, angle = g[:, 2] / t[:, 2], np.radians(g[:, 3] - t[:, 3])
    turn = (scale * np.exp(1j * angle))[order, None]  # complex, so that one product turns and resizes
    start, end = (side[:, :2] @ (1, 1j) for side in (t, g))
    away = start[None] - start[order, None]           # (guesses, n)
    error, size = np.abs(end[order, None] + turn * away - end[None]), np.abs(turn)
    agree = error <= NEAR * np.maximum(size, 1) + PER_DISTANCE * size * np.abs(away)
    agree &= _own_agrees(scale[None], angle[None], scale[order, None], angle[order, None])
    agree &= (size >= 1 / SCALES) & (size <= SCALES)
    support = agree @ points.weight
    return agree[np.argsort(-support, kind="stable")[:REFINED]]


def _own_agrees(scale, angle, wanted_scale, wanted_angle):
    """Whether features changed in scale and angle as wanted; angles in radians."""
    off = np.abs((angle - wanted_angle + np.pi) % (2 * np.pi) - np.pi)
    return (np.abs(np.log(scale / wanted_scale)) <= np.log(SCALE_RATIO)) & (off <= np.radians(ANGLE))


def _refined(points, inside):
    """-> PointTransform from those that agree with a guess, or None."""
    matrix = None
    for tolerance in TOLERANCES:
        fitted = _fitted(points, inside)
        if fitted is None:
            break
        matrix, inside = fitted, _inside(points, fitted, tolerance)
    if matrix is None or not inside.any():
        return None
    inliers = distinct_places(points, np.flatnonzero(inside))
    return PointTransform(matrix, inliers, float(points.weight[inliers].sum())) if len(inliers) >= 3 else None


def _fitted(points, inside):
    """-> (2, 3): affine where many points say so and it is plausible, else a similarity; None where neither
    is."""
    if inside.sum() < 3:
        return None
    t, g, w = points.training[inside, :2], points.generated[inside, :2], points.weight[inside] + 0.1
    if inside.sum() >= 8:
        matrix = affine_transform(t, g, w)
        if _plausible(matrix):
            return matrix
    matrix = similarity_transform(t, g, w)
    return matrix if _plausible(matrix) else None


def _inside(points, matrix, tolerance):
    large, small = np.linalg.svd(matrix[:, :2], compute_uv=False)
    scale = np.sqrt(large * small)
    angle = np.arctan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1])
    t, g = points.training, points.generated
    error = np.linalg.norm(t[:, :2] @ matrix[:, :2].T + matrix[:, 2] - g[:, :2], axis=1)
    own_scale, own_angle = g[:, 2] / t[:, 2], np.radians(g[:, 3] - t[:, 3])
    return (error <= tolerance * max(scale, 1)) & _own_agrees(own_scale, own_angle, scale, angle)


def _plausible(matrix):
    if not np.isfinite(matrix).all() or np.linalg.det(matrix[:, :2]) <= 0:
        return False
    large, small = np.linalg.svd(matrix[:, :2], compute_uv=False)
    return large <= ANISOTROPY * small and 1 / SCALES <= np.sqrt(large * small) <= SCALES


def similarity_transform(training, generated, weight) -> np.ndarray:
    """Points (n, 2) each, weights (n,) -> (2, 3): shift, turn and one scale, by least squares. NaN where all
    points are one."""
    t, g = training @ (1, 1j), generated @ (1, 1j)
    t_mean, g_mean = np.average(t, weights=weight), np.average(g, weights=weight)
    spread = (weight * np.abs(t - t_mean) ** 2).sum()
    if spread <= 1e-6 * weight.sum():
        return np.full((2, 3), np.nan)
    a = (weight * np.conj(t - t_mean) * (g - g_mean)).sum() / spread
    c = g_mean - a * t_mean
    return np.array([[a.real, -a.imag, c.real], [a.imag, a.real, c.imag]])


def affine_transform(training, generated, weight) -> np.ndarray:
    """The same with any linear part."""
    root = np.sqrt(weight)[:, None]
    known = np.concatenate([training, np.ones((len(training), 1))], 1)
    return np.linalg.lstsq(known * root, generated * root, rcond=None)[0].T


def distinct_places(points: MatchedPoints, at: np.ndarray) -> np.ndarray:
    """Of matches `at`, the heaviest first, one for each place of the training picture, and of the generated
    one."""
    at = at[np.argsort(-points.weight[at], kind="stable")]
    for side in (points.training, points.generated):
        cells = np.floor(side[at, :2] / PLACE).astype(np.int64) @ (1, 1_000_003)
        at = at[np.sort(np.unique(cells, return_index=True)[1])]
    return at
