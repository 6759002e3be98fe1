"""How a training picture may lie in a generated one: a search over flips, right angles, sizes and shifts; then small corrections.

The search finds, for each size and orientation, the shift of highest normalized correlation over the overlap, by the Fourier
transform (Padfield 2012, masked normalized cross-correlation). The corrections follow Lucas and Kanade (1981) on structure.
"""
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from rotescope.datasets.geometry.structure import (
    INSIDE,
    ORIENTATIONS,
    SIDE_OF_FRAME,
    less_mean,
    orientation_matrix,
    oriented,
    pooled,
)

COARSE, SPECTRUM = 16, 40     # pixels a side of a training picture in the search, and of the Fourier transform
SIZES = (32, 27, 23, 20, 18, 16, 15, 14, 13, 11, 9, 8)  # of the generated picture there: it is laid at 16 / size of its own
STRETCHED = ((13, 16), (16, 13))
TURNED_SIZES = (20, 16, 13)   # of those turned by right angles
SHRINKAGE = 0.2               # of the whole energy, added to the overlap's: a small overlap correlates by chance
TILT = 0.17                   # radians: a small turn to start from
STEPS, LARGEST_STEP = 6, 0.1  # of the corrections
# what each tier of freedom may correct: shift across, shift down, size, stretch, turn
FREEDOM = {"as it is": (0, 0, 0, 0, 0), "flipped": (0, 0, 0, 0, 0),
           "shift": (1, 1, 0, 0, 0), "zoom": (1, 1, 1, 0, 0), "free": (1, 1, 1, 1, 1)}
TIERS = tuple(FREEDOM)
STARTS = ("shift", "shift", "zoom", "zoom", "free", "free", "free")  # what is corrected, of each training picture


@dataclass(frozen=True)
class Poses:
    """n ways to lay an oriented training canvas on a generated one: u ↦ R(turn) diag(e^size) u + shift, in canvas points."""
    orientation: torch.Tensor  # (n,) places in ORIENTATIONS
    size: torch.Tensor         # (n, 2) logarithms of the magnification, across and down
    turn: torch.Tensor         # (n,) radians, clockwise
    shift: torch.Tensor        # (n, 2)

    def matrices(self) -> torch.Tensor:
        """-> (n, 2, 2): R diag(e^size), without the orientation."""
        cos, sin = self.turn.cos(), self.turn.sin()
        turned = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        return turned * self.size.exp()[:, None, :]

    def at(self, chosen) -> "Poses":
        """The poses at these places."""
        return Poses(self.orientation[chosen], self.size[chosen], self.turn[chosen], self.shift[chosen])


@dataclass(frozen=True)
class SearchSpectra:
    """Fourier transforms of a generated picture at every one of k sizes and orientations."""
    structure: torch.Tensor    # (k, 3, f, f)
    energy: torch.Tensor       # (k, f, f)
    whole: torch.Tensor        # (k,) energy of the whole picture
    inside: torch.Tensor       # (i, f, f): several orientations cover the same area
    which: torch.Tensor        # (k,) which of these areas


@lru_cache(maxsize=1)
def _templates():
    """-> (place in ORIENTATIONS, (columns, rows)) of the generated picture in the search."""
    squares = [(n, n) for n in SIZES]
    upright = [(o, size) for o, (turns, _) in enumerate(ORIENTATIONS) if turns == 0 for size in (*squares, *STRETCHED)]
    return tuple(upright + [(o, (n, n)) for o, (turns, _) in enumerate(ORIENTATIONS) if turns for n in TURNED_SIZES])


def _undone(orientation):
    """The orientation that takes back another one."""
    turns, mirror = orientation
    return (turns, True) if mirror else (-turns % 4, False)


def search_spectra(channels: torch.Tensor) -> SearchSpectra:
    """A generated picture's canvas (7, 32, 32) -> what the search needs of it."""
    back = [oriented(channels, _undone(o)) for o in ORIENTATIONS]
    padded = torch.zeros(len(_templates()), 5, SPECTRUM, SPECTRUM)
    for k, (o, (columns, rows)) in enumerate(_templates()):
        small = pooled(back[o], (rows, columns))
        structure = less_mean(small)
        padded[k, :, :rows, :columns] = torch.cat([structure, small[INSIDE:], (structure ** 2).sum(0, keepdim=True)])
    spectra = torch.fft.rfft2(padded)
    areas = {}
    which = [areas.setdefault(inside.numpy().tobytes(), (len(areas), k))[0] for k, inside in enumerate(padded[:, 3])]
    return SearchSpectra(spectra[:, :3], spectra[:, 4], padded[:, 4].sum((1, 2)), spectra[[k for _, k in areas.values()], 3],
                         torch.tensor(which))


def _correlations(made, channels):
    """Spectra of one picture, training canvases (n, 7, 32, 32) -> (n, k, f, f): correlation at every shift."""
    small = F.interpolate(channels, (COARSE, COARSE), mode="area")
    structure = less_mean(small)
    energy = (structure ** 2).sum(1)
    trained = torch.fft.rfft2(torch.cat([structure, small[:, INSIDE:], energy[:, None]], 1), s=(SPECTRUM, SPECTRUM)).conj()
    product = sum(made.structure[None, :, c] * trained[:, None, c] for c in range(3))
    numerator, of_trained = _back(product), _back(made.inside[None] * trained[:, None, 4])[:, made.which]
    alike = bool((small[1:, INSIDE] == small[:1, INSIDE]).all())  # pictures of one shape cover the same
    of_made = _back(made.energy[None] * trained[:1 if alike else None, None, 3])
    whole = made.whole[None, :, None, None], energy.sum((1, 2))[:, None, None, None]
    scale = (of_made.clamp(min=0) + SHRINKAGE * whole[0]) * (of_trained.clamp(min=0) + SHRINKAGE * whole[1])
    return numerator * scale.clamp_(min=1e-9).rsqrt_()


def _back(spectra):
    return torch.fft.irfft2(spectra, s=(SPECTRUM, SPECTRUM))


def coarse_poses(made: SearchSpectra, channels: torch.Tensor) -> Poses:
    """Training canvases (n, 7, 32, 32) -> Poses of n × 7 starts, a picture's own side by side, in the order of STARTS."""
    best, place = _correlations(made, channels).flatten(2).max(2)  # (n, k)
    plain = torch.tensor([size == (COARSE, COARSE) for _, size in _templates()])
    shifted = best.where(plain, -torch.inf).topk(2).indices
    zoomed = best.topk(3).indices
    chosen = torch.cat([shifted, zoomed[:, :2], zoomed[:, :1], zoomed[:, :1], zoomed[:, :1]], 1)
    poses = _poses_at(chosen.flatten(), place.gather(1, chosen).flatten())
    upright = torch.arange(len(chosen)) * len(STARTS) + len(STARTS) - 2
    for way in (0, 1):  # the picture as it is, turned a little to either side
        poses.turn[upright + way] = TILT * (1 - 2 * way)
        poses.orientation[upright + way], poses.size[upright + way], poses.shift[upright + way] = 0, 0.0, 0.0
    return poses


def _poses_at(template, place):
    """Places in _templates() and in the plane of shifts, each (m,) -> Poses."""
    orientation = torch.tensor([o for o, _ in _templates()])[template]
    side = torch.tensor([size for _, size in _templates()], dtype=torch.float32)[template]
    shift = torch.stack([place % SPECTRUM, place // SPECTRUM], -1).float()
    shift = torch.where(shift >= side, shift - SPECTRUM, shift)
    offset = 2 * (shift + COARSE / 2 - side / 2) / side
    matrices = torch.tensor(np.stack([orientation_matrix(o) for o in ORIENTATIONS]), dtype=torch.float32)[orientation]
    size = (matrices.abs() @ (COARSE / side).log()[:, :, None])[..., 0]  # across and down after the turn
    return Poses(orientation, size, torch.zeros(len(side)), (matrices @ offset[:, :, None])[..., 0])


@lru_cache(maxsize=1)
def _points():
    """-> (32, 32, 2): the points of a canvas, (x, y)."""
    axis = (torch.arange(SIDE_OF_FRAME) + 0.5) * 2 / SIDE_OF_FRAME - 1
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)


def laid(canvases: torch.Tensor, poses: Poses) -> torch.Tensor:
    """Oriented training canvases (n, c ≥ 3, 32, 32), structure first -> the same, laid as the poses say; 0 outside."""
    back = torch.linalg.inv(poses.matrices())
    grid = torch.einsum("nij,nyxj->nyxi", back, _points()[None] - poses.shift[:, None, None, :])
    moved = F.grid_sample(canvases, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    cos, sin = (f(2 * poses.turn)[:, None, None] for f in (torch.cos, torch.sin))  # a turned edge runs in another direction
    along, across = moved[:, 1], moved[:, 2]
    return torch.cat([moved[:, :1], torch.stack([cos * along - sin * across, sin * along + cos * across], 1), moved[:, 3:]], 1)


def corrected(made: torch.Tensor, canvases: torch.Tensor, poses: Poses, allowed: torch.Tensor) -> Poses:
    """A generated structure (4, 32, 32), its last channel 1 inside; oriented training ones (n, 4, 32, 32); what may change
    (n, 5) -> the poses of highest correlation on the way of Gauss's and Newton's steps."""
    best, best_score = poses, torch.full((len(canvases),), -torch.inf)
    for step in range(STEPS + 1):
        moved = laid(canvases, poses)
        score = overlap_correlation(made, moved, canvases)
        better = score > best_score
        best_score = torch.where(better, score, best_score)
        best = Poses(*(torch.where(better.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in
                       zip(vars(poses).values(), vars(best).values(), strict=True)))
        if step < STEPS:
            poses = _stepped(made, moved, poses, allowed)
    return best


def overlap_correlation(made, moved, canvases):
    """Structures and insides: one (4, s, s), the others as laid (n, 4, s, s), and as they were -> (n,)."""
    a, b, both = made[:3], moved[:, :3], made[3] * moved[:, 3]
    product = (a * b).sum((1, 2, 3))
    of_made, of_trained = ((a ** 2).sum(0) * both).sum((1, 2)), ((b ** 2).sum(1) * both).sum((1, 2))
    scale = moved[:, 3].sum((1, 2)) / canvases[:, 3].sum((1, 2)).clamp(min=1)  # a magnified picture's energy grows
    whole = (a ** 2).sum(), (canvases[:, :3] ** 2).sum((1, 2, 3)) * scale.clamp(max=1)
    return product / ((of_made + SHRINKAGE * whole[0]) * (of_trained + SHRINKAGE * whole[1])).clamp(min=1e-9).sqrt()


@lru_cache(maxsize=1)
def _moves():
    """How points move under each parameter, about the middle: products of the moves (3 · 1024, 25), for the squared slopes
    across, their product, and those down; and the moves themselves (2 · 1024, 5)."""
    x, y = _points().flatten(0, 1).unbind(-1)
    one, none = torch.ones_like(x), torch.zeros_like(x)
    across, down = torch.stack([one, none, x, x, -y], 1), torch.stack([none, one, y, -y, x], 1)
    both = across[:, :, None] * down[:, None, :]
    products = [across[:, :, None] * across[:, None, :], both + both.transpose(1, 2), down[:, :, None] * down[:, None, :]]
    return torch.cat(products).flatten(1), torch.cat([across, down])


def _stepped(made, moved, poses, allowed):
    """One step of Gauss and Newton on the squared difference of structures, each parameter by at most LARGEST_STEP."""
    inside, b, a = (made[3] * moved[:, 3])[:, None], moved[:, :3], made[:3]
    b = b * inside
    gain = ((a * b).sum((1, 2, 3)) / (b * b).sum((1, 2, 3)).clamp(min=1e-6)).clamp(0.2, 5)[:, None, None, None]
    per_point = gain * (SIDE_OF_FRAME / 4)  # from differences over two cells to canvas points
    across = F.pad(b[..., 2:] - b[..., :-2], (1, 1)) * per_point
    down = F.pad(b[..., 2:, :] - b[..., :-2, :], (0, 0, 1, 1)) * per_point
    left = (a * inside).sub_(b * gain)
    slopes = torch.stack([(across * across).sum(1), (across * down).sum(1), (down * down).sum(1)], 1).flatten(1)
    target = -torch.stack([(across * left).sum(1), (down * left).sum(1)], 1).flatten(1)
    products, moves = _moves()
    normal = (slopes @ products).view(-1, 5, 5)
    damping = 0.02 * normal.diagonal(dim1=1, dim2=2) + 1e-4 + 1e9 * (1 - allowed)
    step = torch.linalg.solve(normal + torch.diag_embed(damping), target @ moves)
    step = step.clamp(-LARGEST_STEP, LARGEST_STEP) * allowed
    size, stretch, turn = step[:, 2], step[:, 3], step[:, 4]
    x, y = poses.shift.unbind(1)  # it grows and turns with the picture
    shift = poses.shift + step[:, :2] + torch.stack([(size + stretch) * x - turn * y, (size - stretch) * y + turn * x], 1)
    grown = poses.size + torch.stack([size + stretch, size - stretch], 1)
    return Poses(poses.orientation, grown.clamp(-1.0, 1.0), poses.turn + turn, shift)
