"""Which pictures of one set are copies of each other, or of another set's: cropped, mirrored, framed, written over, encoded anew.

One definition for a look before training (preflight) and for the twins that an audit sets apart.
"""
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from PIL import Image

from rotescope.datasets.geometry.match import Match, Verifier
from rotescope.datasets.geometry.pixel_verifier import PixelVerifier
from rotescope.datasets.geometry.point_verifier import PointVerifier
from rotescope.datasets.images.square import typical_side

POINTS_FROM = 128  # pixels of the typical shorter side; smaller pictures hold too few local features
CANDIDATES = 6     # pictures that each is laid on, by either verifier


def make_verifiers(shas: Sequence[str], openers: Sequence[Callable[[], Image.Image]], folder=None,
                   on_image: Callable[[], None] | None = None) -> list[Verifier]:
    """The verifiers that serve pictures of this size.

    Parameters
    ----------
    shas : sequence of str
        SHA-256 of each picture, by which features are kept.
    openers : sequence of callable
        What opens each, as RGB.
    folder : str or Path, optional
        Keeps the features.
    on_image : callable, optional
        Called once for each picture.
    """
    if typical_side(openers) < POINTS_FROM:
        return [PixelVerifier(shas, openers, folder, on_image)]
    return [PixelVerifier(shas, openers, folder), PointVerifier(shas, openers, folder, on_image)]


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Inside, each torch operation runs on one thread: several pictures at a time are faster than several threads for each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_same_picture(match: Match, verifiers: Sequence[Verifier]) -> bool:
    """Whether a match is so sure and covers so much that the two are one picture."""
    return match.is_copy and match.score >= next(v.same for v in verifiers if v.name == match.verifier)


def copies_among(openers: Sequence[Callable[[], Image.Image]], verifiers: Sequence[Verifier],
                 on_image: Callable[[], None] | None = None) -> Iterator[tuple[int, int]]:
    """Yields the pairs i < j of the verifiers' own pictures that are the same picture, each once.

    on_image: called once for each picture.
    """
    def partners(row):
        return _same_as(openers[row](), verifiers, (row,))
    seen: set[tuple[int, int]] = set()
    with one_torch_thread(), ThreadPoolExecutor(os.cpu_count()) as threads:
        for row, found in enumerate(threads.map(partners, range(len(openers)))):
            new = {(min(row, other), max(row, other)) for other in found} - seen
            seen |= new
            yield from sorted(new)
            if on_image:
                on_image()


def copies_between(openers: Sequence[Callable[[], Image.Image]], verifiers: Sequence[Verifier],
                   on_image: Callable[[], None] | None = None) -> Iterator[tuple[int, int]]:
    """Yields (i, j) where the picture that openers[i] opens is the same as the verifiers' own picture j.

    on_image: called once for each picture.
    """
    with one_torch_thread(), ThreadPoolExecutor(os.cpu_count()) as threads:
        for i, found in enumerate(threads.map(lambda opener: _same_as(opener(), verifiers), openers)):
            yield from ((i, j) for j in sorted(found))
            if on_image:
                on_image()


def _same_as(image, verifiers, without=()):
    """-> rows of the verifiers' own pictures that are the same picture."""
    found = set()
    for verifier in verifiers:
        prepared = verifier.prepare(image)
        matches = verifier.verify(prepared, verifier.candidates(prepared, CANDIDATES, without), without)
        found |= {m.row for m in matches if is_same_picture(m, verifiers)}
    return found
