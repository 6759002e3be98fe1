"""How sure a match is: the scores of all verifiers together, each against what chance brings."""
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rotescope.datasets.geometry.match import Match, MatchThreshold
from rotescope.evaluate.nulls.copy_threshold import INNER, OUTER, tail_quantile

ABSENT = -2.3    # evidence of a verifier that finds no match, and the least of one that does: about log(0.1)
FEW = 60         # null pictures below which no tail is drawn: each verifier's usual one is taken
PRIOR = 30       # null scores beyond the level that the usual spread stands for, when a spread is drawn from others


@dataclass(frozen=True)
class Evidence:
    """What matches are worth.

    A verifier's best score on a picture that copies nothing has an exponential tail: it exceeds `level` with probability
    0.1, and each `spread` more divides that by e. So (score − level) / spread is minus the logarithm of how rare a score
    is, but for a constant, and the sum over verifiers is the evidence that a training picture is shown.

    tails: (level, spread) of each verifier; threshold: the least evidence that counts.
    """
    tails: Mapping[str, tuple[float, float]]
    threshold: float = math.log(0.1 / 0.001)
    rule: str = "too few pictures to draw a tail through: what is usual on photographs and drawings"
    n: int = 0                   # pictures that copy nothing, of which chance is a share
    chance: float = 0.0          # for such a share some match reaches the threshold
    thresholds: dict[str, MatchThreshold] = field(init=False)

    def __post_init__(self):
        one = {name: MatchThreshold(name, self.threshold, self.rule, self.n, self.chance) for name in self.tails}
        object.__setattr__(self, "thresholds", one)

    def weighed(self, matches: Sequence[Match]) -> list[Match]:
        """Raw matches of one picture -> for each training picture its match by the verifier that is surest, the evidence of
        all verifiers as its score."""
        of_row = defaultdict(dict)
        for m in matches:
            of_row[m.row][m.verifier] = m
        return [replace(max(found.values(), key=self._worth), score=sum(
            self._worth(found[name]) if name in found else ABSENT for name in self.tails)) for found in of_row.values()]

    def _worth(self, m):
        level, spread = self.tails[m.verifier]
        return max((m.score - level) / spread, ABSENT)

    def surest(self, matches: Sequence[Match]) -> tuple[Match, ...]:
        """Raw matches of one picture -> those that count, one for each training picture: copies first, then the surest."""
        found = [m for m in self.weighed(matches) if m.score >= self.threshold]
        return tuple(sorted(found, key=lambda m: (not m.is_copy, -m.score, m.row)))


def drawn_evidence(usual: Mapping[str, tuple[float, float]], training: Sequence[Sequence[Match]],
                   heldout: Sequence[Sequence[Match]], quantile: float) -> Evidence:
    """Calibrate on pictures that copy nothing.

    Parameters
    ----------
    usual : mapping
        The (level, spread) of each verifier where nothing else is known.
    training, heldout : sequence of sequence of Match
        Raw matches of training pictures with the others, and of held-out pictures.
    quantile : float
        Of the null, that the threshold is.
    """
    null, least = [*training, *heldout], math.log((1 - INNER) / (1 - quantile))  # what one verifier alone must reach
    if len(null) < FEW:
        drawn = Evidence(usual, least)
    else:
        tails = {name: _tail(null, name, spread) for name, (_, spread) in usual.items()}
        most = _most(Evidence(tails), null)
        what = f"each of {len(training):,} training images against the others" + (
            f", and of {len(heldout):,} held-out pictures" if len(heldout) else "")
        drawn = Evidence(tails, max(tail_quantile(most, quantile), least),
                         f"{quantile:g} quantile of the most evidence for {what}, and at least {least:.2f}")
    reached = _most(drawn, null) >= drawn.threshold
    return replace(drawn, n=len(null), chance=float(reached.mean()) if null else 0.0)


def _tail(null, verifier, usual_spread):
    """-> (level, spread) of a verifier's best scores on the null. From the level on the tail falls by half up to the
    quantile 0.95, so a spread is that distance over log 2. Few scores lie there, so it is drawn to the usual one: the mean of
    an exponential distribution under its conjugate prior."""
    best = [max((m.score for m in matches if m.verifier == verifier), default=0.0) for matches in null]
    inner, outer = np.quantile(best, (INNER, OUTER), method="higher")
    beyond = (1 - INNER) * len(null)
    return float(inner), float((beyond * (outer - inner) / math.log(2) + PRIOR * usual_spread) / (beyond + PRIOR))


def _most(evidence, several):
    """-> (n,) the most evidence for any training picture; without any match, none of any verifier."""
    least = ABSENT * len(evidence.tails)
    return np.array([max((m.score for m in evidence.weighed(matches)), default=least) for matches in several])
