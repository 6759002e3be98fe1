"""How far the evidence of a laid training picture lies above what chance brings in the same way of laying it. Pure."""
from collections.abc import Sequence

import numpy as np

from rotescope.datasets.geometry.agreement import EVIDENCE
from rotescope.datasets.geometry.pose_search import TIERS

TAIL = 0.97          # the quantile of chance that scores 1
LEAST_SPREAD = 0.12  # from the median to that quantile
BEYOND = 1.3         # evidence of 1 is stretched to −log(0.3)
# which evidence counts in which tier; the others brought more chance than copies
USED = {"as it is": ("kept", "mapped", "structure"), "flipped": ("kept",), "shift": ("kept", "mapped"),
        "zoom": ("kept", "structure"), "free": ("kept",)}
WAYS = np.array([[kind in USED[tier] for kind in EVIDENCE] for tier in TIERS])
# medians and spreads, a row for each tier, on 96 photographs; they count as much as so many of one's own pictures
PRIOR, USUAL = 20, np.array([
    [(0.04, 0.13, 0.10), (0.09, 0.21, 0.13), (0.26, 0.52, 0.45), (0.30, 0.52, 0.52), (0.28, 0.58, 0.53)],
    [(0.56, 0.52, 0.13), (0.57, 0.68, 0.76), (0.49, 0.37, 0.47), (0.57, 0.42, 0.47), (0.60, 0.36, 0.47)]])


def stretched(evidence: np.ndarray) -> np.ndarray:
    """Evidence (tiers, kinds) -> the same; of colours, so that the step from good to perfect agreement counts most."""
    return np.where(np.array(EVIDENCE) == "structure", evidence, -np.log(BEYOND - evidence))


def chance_levels(best: Sequence[np.ndarray]) -> np.ndarray:
    """Of each picture that copies nothing the best stretched evidence (tiers, kinds) with any training picture
    -> (2, tiers, kinds): median and spread, drawn to the usual ones where there are few pictures. Neither is lower than one's
    own: what a few pictures of one series have in common is known from them alone."""
    if not len(best):
        return USUAL
    middle = np.median(best, 0)
    own = np.stack([middle, np.maximum(np.quantile(best, TAIL, 0) - middle, LEAST_SPREAD)])
    return np.maximum(own, (len(best) * own + PRIOR * USUAL) / (len(best) + PRIOR))


def sureness(evidence: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Evidence and levels of chance -> (tiers, kinds): how far each lies above the median, in spreads; −∞ for what does not
    count."""
    return np.where(WAYS, (stretched(evidence) - levels[0]) / levels[1], -np.inf)
