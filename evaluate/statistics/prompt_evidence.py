"""What all images of a prompt say together: one p-value, were nothing copied. Pure: numbers in, numbers out."""
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from rotescope.evaluate.nulls.copy_threshold import CLOSEST, nearness
from rotescope.evaluate.statistics.significance import any_of, as_many_of, surest_of, tail_p_values

BEYOND_RANKS = 0.1  # of the smallest p-value that ranks among the null give: a tail is not trusted further to fail a model
BEST = 4  # images of a prompt, the closest, whose mean nearness to one training image counts


@dataclass(frozen=True)
class PromptEvidence:
    """p-values of one prompt, each of another trace that copying leaves; None where one does not apply.

    They are combined by Bonferroni's rule, which holds however they depend on each other.
    """
    nearest: float               # its images come as close to any training image
    own: float | None            # they come as close, together, to the training image that the prompt belongs to
    agreement: float | None      # the others come as close, together, to the training image that its closest one is nearest to
    matches: float | None        # as many of them are copies by verified matches
    matches_any: float | None    # as many of them have a verified match, of a part or the whole

    derived: ClassVar = ("p", "p_any")  # also in JSON

    @property
    def p(self) -> float:
        """Of copies as a whole."""
        return surest_of((self.nearest, self.own, self.agreement, self.matches))

    def within(self, least: float) -> "PromptEvidence":
        """The same, its nearest image no more surprising than `least`."""
        return replace(self, nearest=max(self.nearest, least))

    @property
    def tests(self) -> int:
        """How many are combined."""
        return sum(p is not None for p in (self.nearest, self.own, self.agreement, self.matches))

    @property
    def p_any(self) -> float:
        """Of copies, whole or in part."""
        return surest_of((self.nearest, self.own, self.agreement, self.matches_any))


def joint_nearness(similarity):
    """similarity (s, …) of a prompt's images to one training image -> (…) the mean nearness of the BEST closest. One exact copy
    lifts it, and so do several rough ones."""
    return nearness(-np.sort(-np.asarray(similarity, np.float64), axis=0)[:BEST]).mean(axis=0)


def nearest_p(top1, null):
    """top1 (s,): similarity of a prompt's images to their nearest training images; null (m,): the same of pictures that copy
    nothing -> p-value of the highest, of one of s."""
    return float(any_of(tail_p_values(nearness([np.max(top1)]), nearness(null))[0], len(top1)))


def least_nearest_p(n, null):
    """What the null is large enough to show of the nearest of n images: an exponential tail fits its highest values, and beyond
    them nothing says that it goes on so."""
    return float(any_of(BEYOND_RANKS / (len(null) + 1), n))


def match_p(k, n, thresholds):
    """k of n images have a verified match -> p-value; None where none were sought.

    Of N null pictures of which some match, the chance is taken for (matching + 1) / (N + 1), so a p is never below what N
    allow. The images of a prompt count as independent: of two that copy nothing, one is not verified because the other is.
    """
    if not thresholds:
        return None
    return as_many_of(k, n, max((t.chance * t.n + 1) / (t.n + 1) for t in thresholds))


def smallest_p(n, null, tests=1):
    """The smallest p-value that n images of a prompt can have, one of them being a copy.

    Parameters
    ----------
    n : int
        Images of the prompt.
    null : array (m,)
        Similarities of pictures that copy nothing to their nearest training images.
    tests : int
        How many p-values are combined.
    """
    return min(1.0, tests * nearest_p(np.full(n, 1 - CLOSEST), null))
