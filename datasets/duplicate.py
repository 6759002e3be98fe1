"""Duplication plans: which images repeat, how often, under which captions, and which untouched ones they are compared with."""
import hashlib
from dataclasses import dataclass, replace

from rotescope.datasets.records import Manifest
from rotescope.errors import InputError

CAPTION_STYLES = ("same", "several")
REWORDINGS = ("{}", "a picture of {}", "there is {}", "this is {}", "you see {}")


@dataclass(frozen=True)
class DuplicationPlan:
    """A dose: `copies` of each duplicated image in every epoch, once all the others."""
    duplicated: int | tuple[str, ...] = 0  # how many images, or the ids of them
    copies: int = 1
    captions: str = "same"                 # "several": each copy under one of several rewordings, in turn
    controls: int = 0                      # images shown as before, whose captions no duplicated image has
    seed: int = 0                          # of the choice
    exclusive: bool = False                # leave out other images that bear a caption of a duplicated one

    def __post_init__(self):
        if self.captions not in CAPTION_STYLES:
            raise InputError(f"no caption style {self.captions!r}: take one of {', '.join(CAPTION_STYLES)}")
        if self.copies < 1:
            raise InputError(f"{self.copies} copies of an image cannot be shown: take 1 or more")
        if self.controls < 0 or (isinstance(self.duplicated, int) and self.duplicated < 0):
            raise InputError("the numbers of duplicated and control images cannot be negative")


def apply_plan(manifest, plan):
    """-> the manifest with copies, groups and captions as planned, in its order.

    The choice is by hash of (seed, image_id), so it does not depend on the order of the images. The captions of the duplicated
    and the control images are all distinct. Raises InputError if the images do not suffice, or an id is unknown.
    """
    if not plan.duplicated and not plan.controls:
        return manifest
    if any(e.group for e in manifest):
        raise InputError("the manifest has a duplication plan already: leave --duplicated and --controls at 0")
    duplicated, controls = _choose(manifest, plan)
    taken = {caption for e in duplicated for caption in e.captions}
    chosen = {e.image_id: _duplicate(e, plan) for e in duplicated} | {e.image_id: replace(e, group="control") for e in controls}
    kept = (e for e in manifest if not (plan.exclusive and e.image_id not in chosen and taken & set(e.captions)))
    return Manifest(tuple(chosen.get(e.image_id, e) for e in kept))


def _choose(manifest, plan):
    """-> duplicated and control examples. Each claims its captions and its content, so that none is another's double."""
    ranked, claimed = sorted(manifest, key=lambda e: _rank(plan.seed, e.image_id)), set()
    named = plan.duplicated if not isinstance(plan.duplicated, int) else ()
    unknown = set(named) - {e.image_id for e in manifest}
    if unknown:
        raise InputError(f"the plan names {len(unknown)} images that the data does not have, {min(unknown)} the first")
    wanted = [e for e in ranked if e.image_id in set(named)] if named else ranked
    duplicated = _claim(wanted, len(named) or plan.duplicated, claimed, "duplicated")
    return duplicated, _claim([e for e in ranked if e.image_id not in named], plan.controls, claimed, "control")


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


def _rank(seed, image_id):
    return hashlib.sha256(f"{seed}:{image_id}".encode()).digest()


def _duplicate(example, plan):
    captions = example.captions if plan.captions == "same" else tuple(r.format(c) for c in example.captions for r in REWORDINGS)
    return replace(example, captions=captions, copies=plan.copies, group="duplicated")
