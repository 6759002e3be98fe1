"""For how much of two pictures a match is borne out: the training picture laid on the generated one, place by
place.

The thumbnails are compared where the transform lays them on one another. A place is borne out where the
luminance around it correlates, or where both are flat and equally bright (but for one gain and one offset of
the whole match), or where an inlier lies.
"""
from dataclasses import dataclass

import cv2
import numpy as np

from rotescope.datasets.geometry.local_features import THUMBNAIL
from rotescope.datasets.images.near_duplicates import Y_CB_CR

BLUR = 0.8           # pixels of the thumbnail, against aliasing
WINDOW = 9           # pixels a side, around a place
CORRELATED = 0.5     # from which two windows show the same
FLAT = 4.0           # levels of standard deviation in a window, below which it is flat
EQUAL = 24.0         # levels by which flat places may differ
INLIER = 3           # pixels around an inlier that it bears out
CLOSED = 5           # pixels: gaps of this size between what is borne out belong to it
RECOLOURED = 26.0    # Euclidean distance of RGB colours: its median over what is borne out


@dataclass(frozen=True)
class BorneOut:
    """Shares of the training picture's area and of the generated one's; whether the colours there are
    others."""
    training_share: float
    generated_share: float
    recoloured: bool
    agreement: float   # of the places in the overlap that are not flat in both, the share that correlates


def borne_out(training, generated, transform, points) -> BorneOut:
    """training, generated: thumbnails (64, 64, 3) uint8; transform: six numbers as in Match; points (n, 2):
    inliers in the training picture, as shares."""
    laid, inside = _laid(generated, transform)
    kept = cv2.GaussianBlur(training.astype(np.float32), (0, 0), BLUR)
    ours, theirs = (picture @ Y_CB_CR[0].astype(np.float32) for picture in (kept, laid))
    clear, flat = _compared(ours, theirs, inside)
    borne = (clear | _equally_bright(ours, theirs, clear, flat) | _around(points)) & inside
    closing = np.ones((CLOSED, CLOSED), np.uint8)
    borne = cv2.morphologyEx(borne.astype(np.uint8), cv2.MORPH_CLOSE, closing).astype(bool) & inside
    share, (a, b, _, d, e, _) = float(borne.mean()), transform
    generated_share = min(share * abs(a * e - b * d), 1.0)
    shown = inside & ~flat
    agreement = float(clear[shown].mean()) if shown.any() else 0.0
    return BorneOut(share, generated_share, _recoloured(kept, laid, borne), agreement)


def _laid(generated, transform):
    """-> (64, 64, 3) float32: what of the generated picture lies on each place of the training picture;
    (64, 64) bool: where any does."""
    a, b, c, d, e, f = transform
    middle = (np.arange(THUMBNAIL) + 0.5) / THUMBNAIL
    x, y = np.meshgrid(middle, middle)
    at_x, at_y = a * x + b * y + c, d * x + e * y + f
    inside = (at_x >= 0) & (at_x <= 1) & (at_y >= 0) & (at_y <= 1)
    reduced = max(BLUR * np.sqrt(abs(a * e - b * d)), BLUR)
    blurred = cv2.GaussianBlur(generated.astype(np.float32), (0, 0), reduced)
    x, y = ((v * THUMBNAIL - 0.5).astype(np.float32) for v in (at_x, at_y))
    return cv2.remap(blurred, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), inside


def _compared(ours, theirs, inside):
    """-> (64, 64) bool twice: where windows correlate clearly, and where both are flat, over what lies
    inside."""
    weight = inside.astype(np.float32)
    share = np.maximum(_mean(weight), 1e-6)
    mean, other = _mean(ours * weight) / share, _mean(theirs * weight) / share
    variance = np.maximum(_mean(ours * ours * weight) / share - mean ** 2, 0)
    varied = np.maximum(_mean(theirs * theirs * weight) / share - other ** 2, 0)
    both = _mean(ours * theirs * weight) / share - mean * other
    flat = (variance < FLAT ** 2) & (varied < FLAT ** 2)
    return both >= CORRELATED * np.sqrt(np.maximum(variance * varied, 1.0)), flat


def _mean(values):
    return cv2.boxFilter(values, -1, (WINDOW, WINDOW), borderType=cv2.BORDER_REFLECT)


def _equally_bright(ours, theirs, clear, flat):
    """Where both are flat and, after the gain and offset that suit what is clear, equally bright."""
    if clear.sum() < WINDOW ** 2:
        return flat & (np.abs(ours - theirs) <= EQUAL)
    x, y = ours[clear], theirs[clear]
    gain = np.clip(((x - x.mean()) * (y - y.mean())).mean() / max(x.var(), 1.0), 0.25, 4.0)
    return flat & (np.abs(gain * (ours - x.mean()) + y.mean() - theirs) <= EQUAL)


def _around(points):
    marked = np.zeros((THUMBNAIL, THUMBNAIL), np.uint8)
    for x, y in np.clip((np.asarray(points) * THUMBNAIL).astype(int), 0, THUMBNAIL - 1):
        marked[max(y - INLIER, 0):y + INLIER + 1, max(x - INLIER, 0):x + INLIER + 1] = 1
    return marked.astype(bool)


def _recoloured(kept, laid, borne):
    return bool(borne.any() and np.median(np.linalg.norm(kept[borne] - laid[borne], axis=1)) >= RECOLOURED)
