"""The verifier "pixels": a training picture laid on a generated one by its edges and colours, where points are too few.

Every training picture is laid in several ways of growing freedom, and each way is judged by three kinds of evidence. What
chance brings differs from way to way: a turned and magnified window of some picture soon looks like another. So every
evidence is held against what other training pictures reach by the same way on training pictures, and the score is the
surest of them: the more freedom a match needs, the more evidence must be there.
"""
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rotescope.evaluate.verification.agreement import EVIDENCE, agreeing, agreement
from rotescope.evaluate.verification.alignment import (
    FREEDOM,
    STARTS,
    TIERS,
    Poses,
    SearchSpectra,
    coarse_poses,
    corrected,
    laid,
    search_spectra,
)
from rotescope.evaluate.verification.match import Match
from rotescope.evaluate.verification.structure import (
    INSIDE,
    ORIENTATIONS,
    STRUCTURE,
    Frame,
    frame_of,
    less_mean,
    orientation_matrix,
    oriented,
)
from rotescope.evaluate.verification.view_index import ViewIndex

CACHED = 4096     # training canvases that are held in memory: 28 kB each
TOGETHER = 16     # training pictures that are laid at a time
QUERIES, NEIGHBOURS = 64, 10  # training pictures that say what chance brings, and on how many others each is laid
TAIL = 0.97       # quantile of chance that scores 1
LEAST_SPREAD = 0.05
WAYS = tuple((tier, evidence) for tier in TIERS for evidence in EVIDENCE)


@dataclass(frozen=True)
class GeneratedFrame:
    """What is kept of a generated picture."""
    frame: Frame
    spectra: SearchSpectra


@dataclass(frozen=True)
class _Laid:
    """The ways in which m poses of one training picture were tried."""
    poses: Poses
    tiers: tuple[int, ...]
    found: object
    row: int
    first: int


class PixelVerifier:
    """See `match.Verifier`.

    Parameters
    ----------
    shas : names of the training pictures' contents, in the order of the index
    openers : as many functions that open a training picture
    folder : kept for later use
    on_image : called after every picture that was read
    """
    name = "pixels"

    def __init__(self, shas: Sequence[str], openers: Sequence[Callable[[], Image.Image]],
                 folder: Path | None = None, on_image: Callable | None = None):
        self._openers, self._frames, self._null = list(openers), OrderedDict(), None
        self._views = ViewIndex(len(self._openers))
        for row in range(len(self._openers)):
            self._views.put(row, self._frame(row))
            if on_image:
                on_image()

    def _frame(self, row):
        """A training picture's Frame, from memory where it was seen lately."""
        if row not in self._frames:
            self._frames[row] = frame_of(self._openers[row]())
            if len(self._frames) > CACHED:
                self._frames.popitem(last=False)
        self._frames.move_to_end(row)
        return self._frames[row]

    def prepare(self, image: Image.Image) -> GeneratedFrame:
        """A generated picture, RGB, in its own shape."""
        frame = frame_of(image)
        return GeneratedFrame(frame, search_spectra(frame.channels))

    def candidates(self, prepared: GeneratedFrame, k: int, without: Iterable[int] = ()) -> list[int]:
        """At most k rows, the likeliest first, none of `without`."""
        return self._views.nearest_rows(prepared.frame, k, without)

    def _evidence(self, made, rows):
        """-> evidence (rows, tiers, kinds), the best of each tier, and the place (rows, tiers, kinds) of its pose; the poses,
        and how they agree."""
        canvases = torch.stack([self._frame(row).channels for row in rows])
        n = len(rows)
        turned = torch.stack([oriented(c, o) for c in canvases for o in ORIENTATIONS])  # (n · 8, 7, 32, 32)
        starts = coarse_poses(made.spectra, canvases)
        place = torch.arange(n).repeat_interleave(len(STARTS)) * len(ORIENTATIONS) + starts.orientation
        own = turned[place]
        allowed = torch.tensor([FREEDOM[t] for t in STARTS], dtype=torch.float32).repeat(n, 1)
        target = torch.cat([less_mean(made.frame.channels), made.frame.channels[INSIDE:]])
        poses = corrected(target, torch.cat([less_mean(own), own[:, INSIDE:]], 1), starts, allowed)
        moved = torch.cat([turned.view(n, 8, *turned.shape[1:]), laid(own, poses).view(n, len(STARTS), *own.shape[1:])], 1)
        before = torch.cat([turned.view(n, 8, *turned.shape[1:]), own.view(n, len(STARTS), *own.shape[1:])], 1)
        found = agreement(made.frame.channels, moved.flatten(0, 1), before.flatten(0, 1), made.frame.grey)
        return _every(n, poses), found

    def _null_levels(self):
        pass


def _every(n, poses):
    """The eight rigid poses of each training picture before its corrected ones."""
    rigid = torch.arange(len(ORIENTATIONS)).repeat(n, 1)
    return Poses(torch.cat([rigid, poses.orientation.view(n, -1)], 1).flatten(),
                 torch.cat([torch.zeros(n, 8, 2), poses.size.view(n, -1, 2)], 1).flatten(0, 1),
                 torch.cat([torch.zeros(n, 8), poses.turn.view(n, -1)], 1).flatten(),
                 torch.cat([torch.zeros(n, 8, 2), poses.shift.view(n, -1, 2)], 1).flatten(0, 1))
