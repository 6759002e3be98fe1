"""Training pictures, edited as a model might give them back, run as if they had been generated: what this audit can find."""
from dataclasses import dataclass

import numpy as np

from rotescope.datasets.images.edits import EDITS
from rotescope.datasets.images.sampling import evenly_spread
from rotescope.evaluate.inputs.samples import Record, Samples
from rotescope.evaluate.measurement.per_image import measure

PLANTED = 24   # pictures, at most
PLANTED_EDITS = ("JPEG 30", "crop to 80 %", "flip", "flip + crop to 80 %")


@dataclass(frozen=True)
class Planted:
    """How many planted copies were found as copies of their own picture."""
    found: int
    n: int
    edits: tuple[str, ...] = PLANTED_EDITS


def planted_samples(examples):
    """Some of the training pictures, each with the next one of the edits -> Samples in memory."""
    edits = {edit.name: edit.make for edit in EDITS}
    records, held = [], {}
    for k, i in enumerate(evenly_spread(len(examples), PLANTED)):
        edit = PLANTED_EDITS[k % len(PLANTED_EDITS)]
        record = Record(f"planted {k:03d}, {edit}", image_id=examples[i].image_id)
        held[record.image] = edits[edit](examples[i].open(), examples[i - 1].open())
        records.append(record)
    return Samples(None, tuple(records), held=held)


def plant(layers, manifest, matcher=None) -> Planted:
    """By the layers, thresholds and Matcher of this run. Where a picture is there twice, in other bytes, either will do."""
    layer = layers["descriptor"]
    samples = planted_samples(layer.index.examples)
    matches = matcher and matcher.verified(samples.pictures)
    measured = measure(samples, layers, manifest, verified=matches)
    same = [layer.twins.clusters.get(row, {row}) if layer.twins else {row} for row in measured.expected.tolist()]
    found = [bool(own == 1 or copied and int(row) in twins)
             for own, copied, row, twins in zip(measured.own_copied, measured.copied, measured.row, same, strict=True)]
    return Planted(int(np.sum(found)), len(found))
