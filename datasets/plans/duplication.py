"""Duplication plans: which images repeat, how often, under which captions, and which untouched ones they are compared with.

A copy is a number in the manifest: it costs no memory, no file and no second reading.
"""
import math
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction

from rotescope.common.errors import InputError
from rotescope.datasets.manifest import Manifest, exact_copies
from rotescope.models.seeds import hashed_integer

CAPTION_STYLES = ("same", "one", "several")
DUPLICATIONS = ("nodup", "dup_both", "dup_image")
REWORDINGS = ("{}", "a picture of {}", "there is {}", "this is {}", "you see {}")


@dataclass(frozen=True)
class DuplicationPlan:
    """A dose: `copies` of each duplicated image in every epoch, once all the others."""
    duplicated: int | tuple[str, ...] = 0  # how many images, or the ids of them
    copies: int = 1
    captions: str = "same"                 # own captions in turn; "one": the first alone; "several": rewordings of each in turn
    controls: int = 0                      # images shown as before, whose captions no duplicated image has
    seed: int = 0                          # of the choice
    exclusive: bool = False                # leave out other images that bear a caption of a duplicated one
    doses: tuple[int, ...] = ()            # canaries: `duplicated` images at each of these numbers of copies
    matched: int = 0                       # controls for each duplicated image, those whose captions are most like its own
    fraction: float = 0.0                  # or this share of all images repeats, whatever the captions

    def __post_init__(self):
        number = self.duplicated if isinstance(self.duplicated, int) else 0
        if self.captions not in CAPTION_STYLES:
            raise InputError(f"no caption style {self.captions!r}: take one of {', '.join(CAPTION_STYLES)}")
        if min(self.copies, *self.doses, 1) < 1:
            raise InputError(f"{min(self.copies, *self.doses, 1)} copies of an image cannot be shown: take 1 or more")
        if min(number, self.controls, self.matched) < 0:
            raise InputError("the numbers of duplicated and control images cannot be negative")
        if not 0 <= self.fraction <= 1:
            raise InputError(f"a fraction of {self.fraction} cannot repeat: it is a share, from 0 to 1")
        if self.fraction and self.duplicated:
            raise InputError("a number of duplicated images and a fraction say the same thing twice: pass one of them")
        if not (self.duplicated or self.fraction):
            self._check_no_dose()

    def _check_no_dose(self):
        """A dose of no images would be left out in silence, and the run be taken for a dosed one."""
        given = {"copies": self.copies > 1, "doses": self.doses, "matched": self.matched,
                 "caption_style": self.captions != "same", "exclusive": self.exclusive}
        if any(given.values()):
            named = " and ".join(f"--{name}" for name, there in given.items() if there)
            raise InputError(f"{named} without duplicated images does nothing: say how many with --duplicated, or leave it out")


def apply_plan(manifest, plan):
    """-> the manifest with copies, groups and captions as planned, in its order.

    The choice is by hash of (seed, image_id), so it does not depend on the order of the images. The captions of the duplicated
    and the control images are all distinct; with a fraction, no control has a duplicated image's.
    Raises InputError if the images do not suffice, or an id is unknown.
    """
    if not (plan.duplicated or plan.controls or plan.fraction):
        return manifest
    if any(e.group for e in manifest):
        raise InputError("the manifest has a duplication plan already: leave --duplicated and --controls at 0")
    ranked = sorted(manifest, key=lambda e: _rank(plan.seed, e.image_id))
    claimed = set()
    duplicated = _duplicated(ranked, plan, claimed)
    chosen = {e.image_id: _planned(e, plan, i) for i, e in enumerate(duplicated)}
    chosen |= {e.image_id: e for e in _controls([e for e in ranked if e.image_id not in chosen], duplicated, plan, claimed)}
    taken = {caption for e in duplicated for caption in e.captions} if plan.exclusive else set()
    kept = (e for e in manifest if e.image_id in chosen or not taken & set(e.captions))
    return Manifest(tuple(chosen.get(e.image_id, e) for e in kept))


def apply_dcr(manifest, duplication, fraction=0.05, weight=5, seed=0):
    """The three kinds of duplication of Somepalli et al. (NeurIPS 2023) -> the planned manifest.

    "nodup": every image once; "dup_both": a fraction `weight` times under one caption; "dup_image": under all its captions in
    turn. The other images keep their first caption. The authors draw with replacement, `weight` times as often on average: here
    it is exact in every epoch.
    """
    if duplication not in DUPLICATIONS:
        raise InputError(f"no duplication {duplication!r}: take one of {', '.join(DUPLICATIONS)}")
    if duplication != "nodup":
        style = "one" if duplication == "dup_both" else "same"
        manifest = apply_plan(manifest, DuplicationPlan(copies=weight, captions=style, seed=seed, fraction=fraction))
    return Manifest(tuple(e if e.group == "duplicated" else replace(e, captions=e.captions[:1]) for e in manifest))


def group_by_copies(manifest):
    """-> the manifest with groups where no plan gave any and its images are shown more or less often, as kohya's repeats have it:
    "duplicated" are those shown more often than the rarest, "control" are these. Else as it is."""
    least = min((e.copies for e in manifest), default=0)
    if any(e.group for e in manifest) or all(e.copies == least for e in manifest):
        return manifest
    return Manifest(tuple(replace(e, group="duplicated" if e.copies > least else "control") for e in manifest))


def check_served(manifest, samples):
    """Raise InputError if a run of `samples` samples, steps times global batch, ends before every copy was shown once."""
    rarest = min((exact_copies(e.copies) for e in manifest), default=Fraction(1))
    epochs = max(1, math.ceil(1 / rarest))   # until that was shown once
    needed = math.ceil(epochs * exact_copies(manifest.copies))
    if samples < needed:
        dose = max(e.copies for e in manifest)
        raise InputError(f"the plan takes {needed} samples to show each image as often as it says (up to {dose:g} times), "
                         f"and the run serves {samples}: train longer, in larger batches, or plan fewer copies")


def check_planned(quarantined):
    """Raise InputError if images that a plan names are among these: the dose, or what it is compared with, would be another."""
    lost = [q for q in quarantined if q.group]
    if lost:
        counts = ", ".join(f"{n} {group}" for group, n in sorted(Counter(q.group for q in lost).items()))
        raise InputError(f"the plan names images that cannot be used ({counts}), the first: {lost[0].reason}")


# ----- the choice

def _duplicated(ranked, plan, claimed):
    """Each claims its captions and its content, so that none is another's double."""
    if plan.fraction:
        duplicated = ranked[:round(plan.fraction * len(ranked))]
        claimed.update(*({e.sha256, *e.captions} for e in duplicated))
        return duplicated
    if isinstance(plan.duplicated, int):
        return _claim(ranked, plan.duplicated * max(len(plan.doses), 1), claimed, "duplicated")
    named = set(plan.duplicated)
    unknown = named - {e.image_id for e in ranked}
    if unknown:
        raise InputError(f"the plan names {len(unknown)} images that the data does not have, {min(unknown)} the first")
    return _claim([e for e in ranked if e.image_id in named], len(named), claimed, "duplicated")


def _controls(others, duplicated, plan, claimed):
    """The matched ones first, then any."""
    words = {e.image_id: _words(e) for e in others} if plan.matched else {}
    found = []
    for own in duplicated if plan.matched else ():
        target = _words(own)
        alike = sorted(others, key=lambda e: -_jaccard(words[e.image_id], target))  # noqa: B023  (used at once)
        found += [replace(e, group="control", matched=own.image_id) for e in _claim(alike, plan.matched, claimed, "control")]
    return found + [replace(e, group="control") for e in _claim(others, plan.controls, claimed, "control")]


def _claim(examples, count, claimed, what):
    """The first `count` examples that share neither caption nor content with what is claimed; claims theirs."""
    found = []
    for e in examples:
        own = {e.sha256, *e.captions}
        if len(found) < count and not own & claimed:
            claimed |= own
            found.append(e)
    if len(found) < count:
        has = f"there are {len(found)}"
        raise InputError(f"the plan needs {count} {what} images with captions of their own, {has}: ask for fewer")
    return found


def _words(example):
    return Counter(word for caption in example.captions for word in caption.lower().split())


def _jaccard(one, other):
    """Of bags of words, Σ min(a, b) / Σ max(a, b); 0 without words.

    Words count as often as they stand: as sets, "a cat and a dog on a rug" is nearer to "a cat on a rug" than "a dog on a rug".
    """
    return (one & other).total() / max((one | other).total(), 1)


def _rank(seed, image_id):
    return hashed_integer(f"{seed}:{image_id}", 32)


def _planned(example, plan, place):
    """Doses go round, so that every one gets its share of what the hash puts first."""
    captions = {"same": example.captions, "one": example.captions[:1],
                "several": tuple(r.format(c) for c in example.captions for r in REWORDINGS)}[plan.captions]
    copies = plan.doses[place % len(plan.doses)] if plan.doses else plan.copies
    return replace(example, captions=captions, copies=copies, group="duplicated")
