"""Elements that several training pictures share, such as a logo, a frame or the same wall: a match of one of them alone is
no copy of each picture that shows it."""
from collections.abc import Mapping, Sequence

import numpy as np

from rotescope.datasets.geometry.match import Match, SharedElement, outlines

SEVERAL = 3      # training pictures, other than twins, that must share it
COMPARABLE = 0.5  # of a match's excess over its threshold, that another match of the same region has at least
OVERLAP = 0.5    # intersection over union of two regions' boxes, from which they are the same region


def elements_apart(found: Sequence[Sequence[Match]], threshold: float,
                   twins: Mapping[int, set[int]]) -> tuple[tuple[tuple[Match, ...], ...], tuple[SharedElement, ...]]:
    """Verified matches of each image, the surest first -> those that are of one picture alone; the elements shared.

    threshold: the least score that counts; twins: row -> the rows of the same picture, which count as one.
    """
    kept, shared = [], {}
    for position, matches in enumerate(found):
        own = []
        for m in matches:
            rows = _sharing(m, matches, threshold, twins)
            if len(rows) < SEVERAL:
                own.append(m)
            else:
                shared.setdefault(frozenset(rows), (set(), m))[0].add(position)
        kept.append(tuple(own))
    return tuple(kept), tuple(SharedElement((m.row, *sorted(rows - {m.row})), tuple(sorted(images)), outlines(m.transform)[1])
                              for rows, (images, m) in shared.items())


def _sharing(m, matches, threshold, twins):
    """-> rows of different pictures, its own among them, that match the same region of the generated picture about as well."""
    rows = {m.row}
    for other in matches:
        close = other.score >= threshold + COMPARABLE * (m.score - threshold)
        if close and not rows & (twins.get(other.row, set()) | {other.row}) and _overlap(m, other) >= OVERLAP:
            rows.add(other.row)
    return rows


def _overlap(one, other):
    """Intersection over union of the boxes around two matches in the generated picture."""
    boxes = [_box(outlines(m.transform)[0]) for m in (one, other)]
    if any(box is None for box in boxes):
        return 0.0
    (low, high), (other_low, other_high) = boxes
    both = np.prod(np.maximum(np.minimum(high, other_high) - np.maximum(low, other_low), 0))
    return float(both / (np.prod(high - low) + np.prod(other_high - other_low) - both))


def _box(polygon):
    return (np.min(polygon, 0), np.max(polygon, 0)) if polygon else None
