"""What similarity means nothing, and from where on it is a copy: one layer for each descriptor."""
from dataclasses import dataclass

import numpy as np

from rotescope.common.errors import InputError
from rotescope.evaluate.neighbours.index import Index
from rotescope.evaluate.nulls.copy_threshold import Spread, copy_threshold, spread
from rotescope.evaluate.nulls.same_picture import Twins
from rotescope.evaluate.options import check_null_name

FEW = 40      # null pictures below which no tail can be drawn through them
SEVERAL = 100  # and below which it is drawn, but not trusted to lie below a published threshold
MANY = 500    # null pictures that are enough for small p-values, whatever else there is
EDITED = 0.98  # pictures as similar as this are one, dimmed or cropped; a threshold as high says that the set is full of them
NEAR_IDENTICAL = {"pixels": 0.95, "pdq": 1 - 2 * 31 / 256}  # least similarity of the exact layer; PDQ's authors allow 31 bits
PUBLISHED = {  # kind of descriptor -> the threshold where the null has too few pictures, and whose it is
    "sscd": (0.75, "SSCD's published 90 % precision"),
    "pdq": (1 - 2 * 31 / 256, "the 31 differing bits that PDQ's authors allow"),
    "pixels": (0.95, "the floor of near-identical copies")}
LEAST = {"sscd": 0.5, "pdq": 0.5, "pixels": 0.5}  # a calibrated threshold is never below; SSCD's is Somepalli et al.'s (2023)
NULLS = {     # name -> what its similarities are; to the nearest training image always
    "train": "each of {n:,} training images to its nearest other one",
    "heldout": "each of {n:,} held-out pictures to its nearest training image",
    "base": "each of {n:,} pictures by the base model, on the same prompts and seeds, to its nearest training image"}


@dataclass(frozen=True)
class ForeignSpread(Spread):
    """Of pictures that are no training images, to the nearest training image."""
    copy_rate: float | None = None  # share over the copy threshold: what chance brings


@dataclass(frozen=True)
class Background(Spread):
    """Of training images to their nearest other one; of held-out pictures and the base model's beside it."""
    heldout: ForeignSpread = ForeignSpread(0)
    base: ForeignSpread = ForeignSpread(0)


@dataclass(frozen=True)
class Layer:
    """One descriptor's index, the similarities that no copying by this model caused, and the threshold drawn from them."""
    index: Index
    threshold: float
    rule: str                     # where the threshold comes from
    nulls: dict[str, np.ndarray]  # by name, as in NULLS; an empty array where there are no such pictures
    twins: Twins | None = None    # which pictures are the same in other bytes, and so in no null

    @property
    def best_null(self):
        """The null that p-values rest on: held-out pictures, if they are many or not far fewer than the training ones, for with a
        few no p is small. Not the base model's pictures: it may copy too."""
        held, train = len(self.nulls["heldout"]), len(self.nulls["train"])
        return "heldout" if held and held >= min(MANY, train / 2) else "train"

    @property
    def chance(self):
        """Share of pictures over the threshold that cannot be copies: of the held-out ones, without them of the background."""
        values = self.nulls["heldout" if len(self.nulls["heldout"]) else "train"]
        return self._share(values) if len(values) else 0.0

    def _share(self, values):
        return float((values >= self.threshold).mean())

    @property
    def background(self):
        """What the nulls look like, numbers alone."""
        heldout, base = (ForeignSpread(**vars(spread(values)),
                                       copy_rate=self._share(values) if len(values) else None)
                         for values in (self.nulls["heldout"], self.nulls["base"]))
        return Background(**vars(spread(self.nulls["train"])), heldout=heldout, base=base)


def nulls_of(index, heldout=(), base=(), on_image=None, twins=None, quantile=0.999):
    """heldout, base: [(SHA-256, what opens the picture)] -> {name: similarities}. twins: Twins of the training images, shared by
    the layers, which learns here which pictures are the same, as far as a threshold at `quantile` needs it. Held-out pictures
    that are training images are still among the others, so that the layers agree on them: see without."""
    def top1(pictures):
        return index.nearest(index.embed(pictures, on_image)) if pictures else (np.zeros(0), np.zeros(0, np.int64))
    twins, heldout = twins or Twins(index.examples), list(heldout)
    held, row = top1(heldout)
    twins.find_heldout(heldout, held, row, quantile)
    return {"train": twins.background(index.vectors, quantile), "heldout": held, "base": top1(list(base))[0]}


def without(nulls, kept):
    """kept (n,) bool: which held-out pictures were not trained on -> the nulls without the others."""
    return nulls | {"heldout": nulls["heldout"][kept]}


def calibrated(index, nulls, quantile=0.999, null="train", threshold=None, twins=None):
    """-> Layer whose threshold is a stated quantile of a stated null, or the user's own.

    InputError if there is nothing to calibrate on and no threshold is given.
    """
    if threshold is not None:
        return Layer(index, float(threshold), "given by the user", nulls, twins)
    empty_but_published = null == "train" and len(index) > 1 and _kind(index.descriptor) in PUBLISHED
    check_null(null, {name for name, values in nulls.items() if len(values) or name == null and empty_but_published})
    drawn, rule = _drawn_threshold(index.descriptor, nulls[null], quantile, null, twins)
    return Layer(index, drawn, rule, nulls, twins)


def _drawn_threshold(descriptor, values, quantile, null, twins):
    """-> the threshold, and where it comes from."""
    kind = _kind(descriptor)
    if len(values) < FEW and kind in PUBLISHED:
        threshold, whose = PUBLISHED[kind]
        return threshold, (f"too few pictures for a calibrated threshold ({len(values)} of at least {FEW}): {threshold:.3g}, "
                           f"{whose}, is used, by {descriptor.name}")
    drawn = copy_threshold(values, quantile)
    least = (PUBLISHED[kind][0] if len(values) < SEVERAL and kind in PUBLISHED else LEAST.get(kind, 0.0))
    aside = ", the same picture in other bytes aside" if null == "train" and twins and twins.clusters else ""
    rule = f"{quantile:g} quantile of the similarity of {NULLS[null].format(n=len(values))}{aside}, by {descriptor.name}"
    if drawn < least:
        return least, f"{rule}; that is {drawn:.3f}, and no threshold is below {least:g}"
    if drawn > EDITED:
        return EDITED, f"{rule}; that is {drawn:.3f}, and no threshold is above {EDITED:g}"
    return drawn, rule


def _kind(descriptor):
    return descriptor.name.partition("-")[0]


def check_null(null, known):
    """InputError if there is no such null, or nothing to take it from."""
    check_null_name(null)
    if null not in known:
        needed = {"train": "at least two different training images", "heldout": "--heldout_data", "base": "--base"}[null]
        raise InputError(f"a copy threshold by the null {null!r} needs {needed}: add some, or pass --copy_threshold")


def exact_layer(index, nulls, kind):
    """-> Layer of near-identical copies: closer than any training or held-out picture comes to another training image, and never
    below a floor. The base model's pictures do not count: they may be copies. Nor do pictures at EDITED or over: those are one
    picture twice, dimmed or cropped, and with them in the null nothing could be a copy of either."""
    quiet = np.concatenate([np.asarray(nulls.get(name, ()), float) for name in ("train", "heldout")])
    least, highest, edited = NEAR_IDENTICAL[kind], quiet[quiet < EDITED].max(initial=-1.0), int((quiet >= EDITED).sum())
    threshold = max(least, float(np.nextafter(np.float32(highest), np.float32(2))))
    aside = f", but for {edited:,} near-duplicates at {EDITED:g} or more" if edited else ""
    rule = (f"no training or held-out picture comes as close to another{aside}, and at least {least:.3g}, "
            f"by {index.descriptor.name}")
    return Layer(index, threshold, rule, nulls)


def warnings(layer):
    """What a reader must know before trusting the threshold."""
    if len(layer.index) < FEW:
        yield f"Only {len(layer.index)} different training images: too few to draw a copy threshold from their likeness."
    yield from layer.twins.notes() if layer.twins else ()
    if layer.threshold >= EDITED:
        yield ("Some training images almost equal others, so the threshold is very high and edited copies may be missed: "
               "remove near-duplicates, or give a threshold.")
    if layer.index.descriptor.kind == "semantic":
        yield (f"{layer.index.descriptor.name} is a semantic descriptor: it tells that two pictures show the same thing, not "
               "that one copies the other.")
    yield from (f"The search was approximate: {said}." for said in layer.index.said)
