"""The mitigation that a report names: picked on one half of the seeds, its figures from the other half.

The fewest copies of several methods are few by merit and by luck; on other seeds the luck is gone.
"""
import numpy as np

from rotescope.evaluate.measurement.per_prompt import prompt_key
from rotescope.evaluate.statistics.clusters import clustered_share
from rotescope.evaluate.statistics.replication import mean
from rotescope.evaluate.verdict.best_mitigation import BestMitigation, MitigatedFigures, best_mitigation


def picked_mitigation(samples, measured, groups):
    """Measured samples and their findings, {method: {group: GroupFindings}} -> BestMitigation, or None where nothing was copied
    or no mitigation stands beside it.

    The group is the one from which plain guidance (without it, the first method) copies most.
    """
    first = "none" if "none" in groups else next(iter(groups))
    group = max(groups[first], key=lambda g: groups[first][g].copy_rate.value)
    others = [m for m in groups if m != first and group in groups[m]]
    if not others or not groups[first][group].copies:
        return None
    seeds = sorted({samples.records[i].seed for m in others for i in samples.cells[m, group]} - {None})
    apart = len(others) > 1 and len(seeds) > 1
    picking, telling = (set(seeds[::2]), set(seeds[1::2])) if apart else (None, None)
    figures = {m: _figures(samples, measured, samples.cells[m, group], picking) for m in (first, *others)}
    if apart and not all(_figures(samples, measured, samples.cells[m, group], telling) for m in others):
        apart, picking, telling = False, None, None
    method = best_mitigation({m: figures[m] for m in others if figures[m]}, figures[first])
    plainly = _figures(samples, measured, samples.cells[first, group], telling)
    return BestMitigation(method, group, len(others), apart,
                          _figures(samples, measured, samples.cells[method, group], telling), plainly and plainly.alignment)


def _figures(samples, measured, cell, seeds):
    """Of the images at `cell` with one of these seeds (None: all) -> MitigatedFigures; None where there are none."""
    at = [i for i in cell if seeds is None or samples.records[i].seed in seeds]
    if not at:
        return None
    whose = np.array([str(prompt_key(samples.records[i])) for i in at])
    copied, partial, sought = measured.copied[at], measured.partial[at], measured.verified is not None
    return MitigatedFigures(
        len(at), int(copied.sum()), clustered_share(copied, whose), int(partial.sum()) if sought else None,
        clustered_share(partial, whose) if sought else None, mean(measured.alignment[at]))
