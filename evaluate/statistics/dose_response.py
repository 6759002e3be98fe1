"""Copy rate against dose: points with intervals, pooled over training seeds, and their table. Pure.

The intervals take training images as clusters, over all fine-tunes that saw them. Those of one fine-tune are not
quite independent either: each point also has its rate by training seed.
"""
from dataclasses import dataclass

from rotescope.common.text_table import TextTable
from rotescope.common.wording import share
from rotescope.evaluate.statistics.clusters import INTERVALS, clustered_share
from rotescope.evaluate.statistics.estimate import Estimate
from rotescope.evaluate.statistics.replication import mean

GROUPS = ("duplicated", "control")


@dataclass(frozen=True)
class Outcome:
    """One generated image."""
    curve: str                # mitigation
    train_seed: int           # of the fine-tune that made it
    dose: int                 # copies of the canary; a control has its canary's
    group: str                # of GROUPS
    copied: bool              # of any training image
    own_copied: bool          # of the one that the prompt belongs to
    alignment: float          # with the prompt; NaN without a metric
    served: int               # how often training showed the prompt's image
    prompt: str               # image_id of the training image that the prompt belongs to


def cell_of(outcomes):
    """-> n, n_prompts, copies, rates, interval, mean alignment, showings of the training image, the rate by training seed."""
    n, copies, own = len(outcomes), sum(o.copied for o in outcomes), sum(o.own_copied for o in outcomes)
    by_seed = {}
    for o in outcomes:
        by_seed.setdefault(str(o.train_seed), []).append(o.copied)
    rate = clustered_share([o.copied for o in outcomes], [o.prompt for o in outcomes])
    return {"n": n, "n_prompts": rate.n_prompts, "copies": copies, "copy_rate": rate.value,
            "copy_rate_interval": [rate.low, rate.high],
            "own_copies": own, "own_copy_rate": own / n, "alignment": mean([o.alignment for o in outcomes]),
            "served": mean([o.served for o in outcomes]),
            "by_train_seed": {s: {"n": len(c), "copies": sum(c), "copy_rate": sum(c) / len(c)} for s, c in by_seed.items()}}


def curves_of(outcomes):
    """-> {curve: {"points": [{dose, duplicated, control}] by dose, "all": {duplicated, control}}}, in order of appearance."""
    found = {}
    for curve in dict.fromkeys(o.curve for o in outcomes):
        own = [o for o in outcomes if o.curve == curve]
        points = [{"dose": dose} | _groups([o for o in own if o.dose == dose]) for dose in sorted({o.dose for o in own})]
        found[curve] = {"points": points, "all": _groups(own)}
    return found


def _groups(outcomes):
    return {group: cell_of([o for o in outcomes if o.group == group]) for group in GROUPS}


def dose_caption(about):
    """What the numbers of a curve mean, in a line; about: what dose.json holds."""
    n = {p["duplicated"]["n"] for curve in about["curves"].values() for p in curve["points"]}
    return (f"{about['images']} images a dose and as many controls, {len(about['train_seeds'])} training seeds × "
            f"{len(about['seeds'])} images of each, n = {'–'.join(map(str, sorted(n)))} a point; copy: {about['descriptor']} ≥ "
            f"{about['copy_threshold']:.3f} ({about['threshold_rule']}); {INTERVALS}")


def dose_table(about):
    """A line a dose, a column a curve; below, its controls of all doses together, and the price in alignment -> TextTable."""
    curves = about["curves"]
    doses = [point["dose"] for point in next(iter(curves.values()))["points"]]
    rows = [(str(dose), *(_share(c["points"][i]["duplicated"]) for c in curves.values())) for i, dose in enumerate(doses)]
    rows.append(("controls", *(_share(c["all"]["control"]) for c in curves.values())))
    rows.append(("alignment, duplicated / controls", *(_alignment(c["all"]) for c in curves.values())))
    return TextTable(("copies", *curves), tuple(rows), f"{dose_caption(about)}.", names="heads")


def _share(cell):
    low, high = cell["copy_rate_interval"]
    return share(Estimate(cell["copy_rate"], low, high, cell["n"], cell["n_prompts"]))


def _alignment(groups):
    values = [groups[group]["alignment"] for group in GROUPS]
    return "–" if None in values else " / ".join(f"{v:.3f}" for v in values)
