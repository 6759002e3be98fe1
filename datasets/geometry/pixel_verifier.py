"""The verifier "pixels": a training picture laid on a generated one by its edges and colours, where points are too few.

Every training picture is laid in ways of growing freedom, and each way is judged by three kinds of evidence. What chance
brings differs from way to way: a turned and magnified window of some picture soon looks like another. So each evidence is held
against what training pictures reach on one another in the same way, and the score is the surest: the more freedom a match
needs, the more evidence must be there. A share of what the surest other training picture reaches on the same generated picture is
taken off, much as Carlini et al. (2023) divide by the distances of the nearest ones: what many share is no copy of each.
"""
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from rotescope.datasets.geometry.agreement import (
    RARE_CELLS,
    Agreement,
    agreeing,
    agreement,
    chance_levels,
    same_colours,
    stretched,
    sureness,
    whitened,
)
from rotescope.datasets.geometry.match import Match
from rotescope.datasets.geometry.pose_search import (
    FREEDOM,
    STARTS,
    TIERS,
    Poses,
    SearchSpectra,
    coarse_poses,
    corrected,
    search_spectra,
)
from rotescope.datasets.geometry.pose_search import laid as laid_canvases
from rotescope.datasets.geometry.small_pictures import SmallPictures
from rotescope.datasets.geometry.structure import (
    INSIDE,
    ORIENTATIONS,
    Frame,
    Whitening,
    frame_of,
    learned,
    learned_apart,
    less_mean,
    orientation_matrix,
    oriented,
    small_picture,
)
from rotescope.datasets.geometry.view_index import CELLS_OF_STRUCTURE, ViewIndex
from rotescope.datasets.images.sampling import evenly_spread

AT_MOST = 400     # training pictures, each in eight orientations, from which correlations are learned
PARTS, GOLDEN = 8, (5 ** 0.5 - 1) / 2  # of these pictures: a whitening is learned without each
CACHED = 4096     # training canvases that are held in memory: 28 kB each
TOGETHER = 16     # training pictures that are laid at a time
SMALL = -0.3      # logarithm of the magnification
RIGID = 4         # of the eight flips and right angles, those that are looked at closely
QUERIES, NEIGHBOURS = 96, 6  # training pictures as generated ones; others that each is held against
SHARED = 0.3      # of the surest other training picture, taken off
SHRUNK, SHRUNK_VIEWS = 0.001, 0.03  # of the largest variance, added to each
TIER_OF = (0, *(1,) * (RIGID - 1)) + tuple(TIERS.index(t) for t in STARTS)  # of every pose of one training picture


@dataclass(frozen=True)
class GeneratedFrame:
    """What is kept of a generated picture."""
    frame: Frame
    spectra: SearchSpectra
    seen: dict = field(default_factory=dict)    # rows that were laid on it -> _Laid
    ranked: dict = field(default_factory=dict)  # rows that were left out -> the candidates among the others


@dataclass(frozen=True)
class _Laid:
    """One training picture, laid on a generated one in several ways."""
    evidence: np.ndarray      # (tiers, kinds): the best of each tier
    poses: Poses              # all that were tried
    best: np.ndarray          # (tiers, kinds): which of them
    agreement: Agreement
    first: int                # where its poses begin in the agreement


def lay(made: GeneratedFrame, canvases: torch.Tensor, whitening: Whitening) -> list[_Laid]:
    """Training canvases (n, 7, 32, 32) on a generated picture."""
    n, every = len(canvases), torch.stack([oriented(canvases, o) for o in ORIENTATIONS], 1).flatten(0, 1)
    target = torch.cat([less_mean(made.frame.channels), made.frame.channels[INSIDE:]])
    plain = torch.cat([less_mean(every), every[:, INSIDE:]], 1)
    rigid = (plain[:, :3] * target[:3]).sum((1, 2, 3)).view(n, -1)
    rigid[:, 0] = torch.inf  # as it is, always
    rigid = rigid.topk(RIGID).indices
    starts = coarse_poses(made.spectra, canvases)
    place = torch.arange(n)[:, None] * len(ORIENTATIONS) + torch.cat([rigid, starts.orientation.view(n, -1)], 1)
    own, rigid_place = place[:, RIGID:].flatten(), place[:, :RIGID].flatten()
    allowed = torch.tensor([FREEDOM[t] for t in STARTS], dtype=torch.float32).repeat(n, 1)
    small = (starts.size.mean(1) < SMALL)[:, None, None, None]  # what is made smaller is softened first
    laid = torch.where(small, F.avg_pool2d(every[own], 3, stride=1, padding=1), every[own])
    poses = corrected(target, torch.cat([less_mean(laid), laid[:, INSIDE:]], 1), starts, allowed)
    moved = torch.cat([every[rigid_place].view(n, RIGID, *every.shape[1:]),
                       laid_canvases(laid, poses).view(n, -1, *every.shape[1:])], 1)
    lengths = whitened(plain[:, :3], whitening).norm(dim=1)[place.flatten()]
    found = agreement(made.frame.channels, moved.flatten(0, 1), lengths, made.frame.grey, whitening)
    return [_judged(_with_rigid(rigid[i], poses, i), found, i * len(TIER_OF)) for i in range(n)]


def _with_rigid(rigid, poses, i):
    """Orientations (4,) -> the poses of picture i: as they are, then those corrected."""
    own, still = poses.at(slice(i * len(STARTS), (i + 1) * len(STARTS))), torch.zeros(RIGID)
    return Poses(torch.cat([rigid, own.orientation]), torch.cat([still[:, None].expand(-1, 2), own.size]),
                 torch.cat([still, own.turn]), torch.cat([still[:, None].expand(-1, 2), own.shift]))


def _judged(poses, found, first):
    evidence = found.evidence[first:first + len(TIER_OF)].numpy()
    tiers = np.array(TIER_OF)
    best = np.stack([np.where(tiers[:, None] == t, evidence, -1).argmax(0) for t in range(len(TIERS))])
    return _Laid(np.take_along_axis(evidence, best, 0), poses, best, found, first)


def _part_of(row):
    """Which of the PARTS a training picture belongs to: as evenly as can be, whichever rows are sampled (Fibonacci hashing)."""
    return int(row * GOLDEN % 1 * PARTS)


class PixelVerifier:
    """See `match.Verifier`.

    Parameters
    ----------
    shas : names of the training pictures' contents, in the order of the index
    openers : as many functions that open a training picture
    folder : keeps the pictures as small as they are compared, in folder/pixels
    on_image : called after every picture that was read
    """
    name, same, usual = "pixels", 4.0, (1.0, 0.25)

    def __init__(self, shas: Sequence[str], openers: Sequence[Callable[[], Image.Image]],
                 folder: Path | None = None, on_image: Callable | None = None):
        self._openers = SmallPictures(folder / "pixels").keep(shas, openers) if folder else list(openers)
        self._frames, self._lock = OrderedDict(), Lock()
        self._null: dict[bool, np.ndarray] = {}
        self._learning = Lock()
        n = len(self._openers)
        known = {row: f.channels for row in evenly_spread(n, AT_MOST).tolist() if (f := self._frame(row)).holds_structure}
        parts = [[canvas for row, canvas in known.items() if _part_of(row) == part] for part in range(PARTS)]
        self._whitenings = learned_apart(parts, RARE_CELLS, SHRUNK)
        self._views = ViewIndex(n, learned(list(known.values()), CELLS_OF_STRUCTURE, SHRUNK_VIEWS))
        for row in range(n):
            self._views.put(row, self._frame(row))
            if on_image:
                on_image()

    def _frame(self, row):
        """A training picture's Frame, from memory where it was seen lately."""
        with self._lock:
            if row in self._frames:
                self._frames.move_to_end(row)
                return self._frames[row]
        frame = frame_of(self._openers[row]())
        with self._lock:
            self._frames[row] = frame
            if len(self._frames) > CACHED:
                self._frames.popitem(last=False)
        return frame

    def prepare(self, image: Image.Image) -> GeneratedFrame:
        """A generated picture, RGB, in its own shape."""
        frame = frame_of(image)
        return GeneratedFrame(frame, search_spectra(frame.channels))

    def candidates(self, prepared: GeneratedFrame, k: int, without: Iterable[int] = ()) -> list[int]:
        """At most k rows, the likeliest first, none of `without`."""
        without = frozenset(without)
        if len(prepared.ranked.get(without, ())) < k:
            prepared.ranked[without] = self._views.nearest_rows(prepared.frame, max(k, NEIGHBOURS), without)
        return prepared.ranked[without][:k]

    def _laid(self, prepared, rows, without):
        """-> row -> _Laid, of the rows that hold structure, each laid once. Two pictures correlate less under a whitening that
        has seen both than under one that has seen one of them. So a picture that is not to be laid on itself, being a training
        picture, is compared under a whitening that has not seen it, as a generated one is."""
        whitening = self._whitenings[_part_of(min(without, default=0))]
        rows = [r for r in rows if r not in prepared.seen]
        for i in range(0, len(rows), TOGETHER):
            some = rows[i:i + TOGETHER]
            canvases = torch.stack([self._frame(r).channels for r in some])
            prepared.seen.update(zip(some, lay(prepared, canvases, whitening), strict=True))
        return prepared.seen

    def verify(self, prepared: GeneratedFrame, rows: Sequence[int], without: Iterable[int] = ()) -> list[Match]:
        """The best Match with each of these rows that holds structure, less a share of what other training pictures reach."""
        rows = [r for r in rows if self._frame(r).holds_structure]
        if not rows or not prepared.frame.holds_structure:
            return []
        levels, others = self._chance(prepared.frame.grey), self.candidates(prepared, NEIGHBOURS, without)
        laid = self._laid(prepared, list(dict.fromkeys([*rows, *others])), without)
        found = {row: sureness(laid[row].evidence, levels) for row in {*rows, *others}}
        best = {row: max((found[r].max() for r in others if r != row), default=0.0) for row in rows}
        return [self._match(prepared, row, found[row], SHARED * max(float(best[row]), 0.0)) for row in rows]

    def _chance(self, grey):
        """-> (2, tiers, kinds): median and spread of the best that chance brings, over training pictures as generated ones; for a
        grey picture, over training pictures without their colours, since one channel agrees more easily than three."""
        with self._learning:  # one thread learns, the others wait
            if grey not in self._null:
                self._null[grey] = self._learned_chance(grey)
            return self._null[grey]

    def _learned_chance(self, grey):
        best = []
        for row in evenly_spread(len(self._openers), QUERIES).tolist():
            image = small_picture(self._openers[row]())
            one = self.prepare(ImageOps.grayscale(image).convert("RGB") if grey else image)
            rows = self.candidates(one, NEIGHBOURS, (row,))
            if rows:
                best.append(np.max([stretched(x.evidence) for x in self._laid(one, rows, (row,)).values()], 0))
        return chance_levels(best)

    def _match(self, prepared, row, sure, shared):
        """The surest way of one training picture -> Match."""
        one = prepared.seen[row]
        tier, kind = np.unravel_index(sure.argmax(), sure.shape)
        pose = int(one.best[tier, kind])
        agrees = agreeing(one.agreement, one.first + pose)
        matrix, offset = _in_shares(one.poses.at(slice(pose, pose + 1)), self._frame(row).extent, prepared.frame.extent)
        filled = float(agrees.mean()) / np.prod(prepared.frame.extent)
        a, b, c, d, e, f = map(float, (*matrix[0], offset[0], *matrix[1], offset[1]))
        magnified = max(abs(float(np.linalg.det(matrix))), 1e-9)
        return Match(row, self.name, float(sure.max()) - shared, (a, b, c, d, e, f),
                     training_share=float(min(filled / magnified, 1.0)), generated_share=float(min(filled, 1.0)),
                     mirrored=bool(np.linalg.det(matrix) < 0), recoloured=not same_colours(one.agreement, one.first + pose))


def _in_shares(pose, trained, made):
    """One pose and the extents of both pictures -> its matrix and offset between shares of the pictures."""
    matrix = pose.matrices()[0].double().numpy() @ orientation_matrix(ORIENTATIONS[int(pose.orientation[0])])
    matrix = matrix * np.array(trained)[None] / np.array(made)[:, None]
    return matrix, 0.5 + pose.shift[0].double().numpy() / (2 * np.array(made)) - matrix @ (0.5, 0.5)
