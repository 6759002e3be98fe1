"""What an evaluation takes in: a picture that cannot be read is left out by name, and does not stop the rest."""
from dataclasses import dataclass

from rotescope.datasets.manifest import Manifest
from rotescope.datasets.plans.duplication import group_by_copies
from rotescope.datasets.readers.quarantine import show_quarantined
from rotescope.datasets.readers.sources import USUAL, Quarantined, read_source
from rotescope.datasets.trainers.data_options import for_other_pictures


@dataclass(frozen=True)
class LeftOut:
    """A picture that cannot be read, or that counts nowhere."""
    of: str       # training, held-out, generated, sweep, base model's
    name: str
    reason: str


def take_in(train_data, heldout_data=None, need_captions=False, listed_in="report.json", options=USUAL):
    """-> (Manifest of the training images, that of the held-out pictures or None, LeftOut pictures of both).

    The last is told on stderr, too, and which file lists it. need_captions: of the training images; options: how these are read.
    Training images that the data show more often than others are duplicated ones. Raises InputError where nothing is there
    or left.
    """
    training = read_source(train_data, need_captions, options)
    heldout = read_source(heldout_data, False, for_other_pictures(options)) if heldout_data else None
    unused = training.unused + (heldout.unused if heldout else ())
    show_quarantined(training.quarantined + (heldout.quarantined if heldout else ()), listed_in, unused)
    return group_by_copies(training.manifest), heldout and heldout.manifest, [
        *left_out_named("training", training.quarantined), *left_out_named("held-out", heldout.quarantined if heldout else ())]


def left_out_named(what, quarantined):
    """What they are of, several Quarantined -> list of LeftOut."""
    return [LeftOut(what, q.name, q.reason) for q in quarantined]


def apart(heldout, training):
    """-> (the held-out pictures that are no training image too, those that are): as a null these would call copying chance."""
    known = {e.sha256 for e in training}
    return _sorted(heldout, lambda e: f"{e.name} is a training image too" if e.sha256 in known else None)


def twins_apart(heldout, twins):
    """The same for those that are a training image in other bytes; twins: twins.Twins, which has looked at them."""
    def why(e):
        row = twins.heldout.get(e.sha256)
        return None if row is None else f"{e.name} is the training image {twins.examples[row].name} in other bytes"
    return _sorted(heldout, why)


def _sorted(heldout, why):
    """why(example) -> reason or None."""
    reasons = [(e, why(e)) for e in heldout or ()]
    rest = tuple(e for e, reason in reasons if not reason)
    return Manifest(rest) if rest else None, [Quarantined(e.name, reason) for e, reason in reasons if reason]


def notes(left_out):
    """Left-out pictures -> a sentence for each kind of them."""
    for what in dict.fromkeys(item.of for item in left_out):
        own = [item for item in left_out if item.of == what]
        yield (f"{len(own):,} {what} {'picture is' if len(own) == 1 else 'pictures are'} left out: {own[0].reason}"
               + (f" (and {len(own) - 1:,} more, all in report.json)" if own[1:] else ""))
