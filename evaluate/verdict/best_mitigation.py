"""The mitigation that leaves the fewest copies at little loss, and its figures on seeds that it was not picked on."""
from dataclasses import dataclass, field

from rotescope.evaluate.statistics.estimate import INTERVAL, Estimate

KEPT = 0.9  # share of the alignment that a mitigation must leave to be called the best


@dataclass(frozen=True)
class MitigatedFigures:
    """What was found under one method in one group of prompts, over some of the seeds."""
    n: int                       # images
    copies: int
    copy_rate: Estimate = field(metadata=INTERVAL)
    partial_copies: int | None   # None where parts were not sought
    partial_copy_rate: Estimate | None = field(metadata=INTERVAL)
    alignment: float | None      # mean cosine with the prompt


@dataclass(frozen=True)
class BestMitigation:
    """The method with the fewest copies, picked on one half of the seeds, and its figures on the other half."""
    method: str
    group: str                   # of prompts: the one from which plain guidance copies most
    of: int                      # how many methods it was picked from
    apart: bool                  # whether the figures are of other seeds than those that it was picked on
    found: MitigatedFigures
    plain_alignment: float | None  # of plain guidance, on the same seeds

    @property
    def optimistic(self) -> bool:
        """The fewest of several, counted on the same images, are too few."""
        return self.of > 1 and not self.apart


def best_mitigation(findings, plain=None):
    """{method: GroupFindings} -> the method with the lowest copy rate among those that keep KEPT of plain
    guidance's alignment, since mush copies nothing; among all, where none does or it is not known. Of
    equals, the best aligned."""
    least = KEPT * ((plain and plain.alignment) or 0)
    kept = {m: f for m, f in findings.items() if (f.alignment or 0) >= least} or findings
    return min(kept, key=lambda m: (kept[m].copy_rate.value, -(kept[m].alignment or 0)))
