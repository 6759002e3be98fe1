"""Pictures that two sets have in common: training and held-out, mine and somebody else's; the same bytes, or
the same picture."""
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rotescope.datasets.geometry.near_copies import copies_between, make_verifiers
from rotescope.datasets.images.clusters import find_pictures, look_at
from rotescope.datasets.manifest import Example, Manifest

SAME_BYTES, SAME_PICTURE = "the same bytes", "the same picture"


@dataclass(frozen=True)
class SharedPicture:
    """An image that another set has too."""
    own: Example
    other: Example   # of several the first
    how: str         # SAME_BYTES or SAME_PICTURE


def shared_pictures(own: Manifest, other: Manifest, verify: bool = True,
                    on_image: Callable[[], None] | None = None) -> list[SharedPicture]:
    """Which images of a set another set has too.

    Parameters
    ----------
    own, other : Manifest
        Compared by content, so two entries of the same bytes both count.
    verify : bool
        Also lay pictures on one another, which finds crops, frames, turns and texts.
    on_image : callable, optional
        Called once for each different picture of both sets.

    Returns
    -------
    list of SharedPicture
        In the order of `own`, each of its images once at most.
    """
    ours, theirs = ({e.sha256: e for e in reversed(m.examples)} for m in (own, other))
    partner = {sha: (theirs[sha], SAME_BYTES) for sha in ours if sha in theirs}
    rest = [e for sha, e in ours.items() if sha not in partner]
    for mine, found in _same_pictures(rest, list(theirs.values()), verify, on_image):
        partner.setdefault(mine.sha256, (found, SAME_PICTURE))
    return [SharedPicture(e, *partner[e.sha256]) for e in own if e.sha256 in partner]


def _same_pictures(ours, theirs, verify, on_image):
    """Pairs of Examples: near-duplicates first, then what geometry adds."""
    if not ours or not theirs:
        return
    with ThreadPoolExecutor() as threads:
        looks = dict(zip((e.sha256 for e in (*ours, *theirs)),
                         threads.map(lambda e: _looked(e, on_image), (*ours, *theirs)), strict=True))
    labels = find_pictures(list(looks), looks).labels
    first: dict = {}
    for example, label in zip(theirs, labels[len(ours):], strict=True):
        first.setdefault(label, example)
    own_labels = labels[:len(ours)]
    yield from ((e, first[label]) for e, label in zip(ours, own_labels, strict=True) if label in first)
    if verify and len(theirs) > 1:
        openers = [e.open for e in theirs]
        verifiers = make_verifiers([e.sha256 for e in theirs], openers)
        yield from ((ours[i], theirs[j]) for i, j in copies_between([e.open for e in ours], verifiers))


def _looked(example, on_image):
    look = look_at(example.open())
    if on_image:
        on_image()
    return look
