"""How well a laid training picture agrees with a generated one: in colours as they are, in colours mapped, in structure alone;
and how far that lies above what chance brings in the same way of laying it.

All three say how much textured overlap agrees. Flat parts alone prove nothing: together they weigh as one observation, how near
the two grounds' colours are. Everything runs over (n, 7, s, s) canvases at once.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from rotescope.datasets.geometry.pose_search import TIERS
from rotescope.datasets.geometry.structure import COLOURS, INSIDE, Whitening, less_mean

EVIDENCE = ("kept", "mapped", "structure")  # colours as they are; each channel times a gain plus an offset; no colours
OURS = 0.25         # what counts as texture: so much the generated picture's edges, the rest the training picture's
TEXTURED = 0.10     # edge magnitude of a cell that shows something
NEAR = (5 / 255, 12 / 255)  # difference of colours that two cells may well have under noise or compression: from, to,
LEVELS = 2 / 255    # the least such difference where a training picture's contrast is made less
CONTRAST = 0.25     # and between these, so much of the standard deviation of the generated picture's colours
SLACK = 0.25        # of an edge's magnitude, that a shift of half a cell may add to it
GROUND = 5 / 255    # difference of two grounds at which their agreement has fallen to 1/e
LEAST_TEXTURE = 8.0 # textured cells, added to an overlap's: few cells agree by chance
LUMINANCE = (0.299, 0.587, 0.114)
LEAST_GAIN = 0.15   # of a colour map: less contrast than that shows nothing
WHOLE_SHARE = 0.5   # of a training picture's whole structure in the length of what is laid: a small part correlates by chance
CELLS, RARE_CELLS = 16, 20  # a side: of which shares are counted, and in which structure is compared
AGREES, SAME = 0.3, 0.5  # closeness from which a cell agrees; and, on average over the overlap, colours are the same


@dataclass(frozen=True)
class Agreement:
    """Of n laid pictures."""
    evidence: torch.Tensor    # (n, 3) from 0 to 1, in the order of EVIDENCE
    closeness: torch.Tensor   # (n, 2, s, s) from 0 to 1, of every cell: in colours as they are, and mapped
    ours: torch.Tensor        # (3, s, s): the generated picture's structure
    theirs: torch.Tensor      # (n, 3, s, s): the training pictures' as laid
    overlap: torch.Tensor     # (n, s, s) share of a cell that lies in both pictures
    textured: torch.Tensor    # (n, s, s) from 0 to 1


def agreement(made: torch.Tensor, moved: torch.Tensor, before: torch.Tensor, grey: bool, whitening: Whitening) -> Agreement:
    """A generated canvas (7, s, s), training ones as laid (n, 7, s, s); the whitened length of these as they were (n,); whether
    the generated one is grey."""
    overlap = made[INSIDE] * moved[:, INSIDE]
    edges = _edges(made, moved)
    overlap = _eroded(overlap)
    textured = (edges / TEXTURED).clamp(max=1) * overlap
    ours, theirs = made[COLOURS].expand(len(moved), -1, -1, -1), moved[:, COLOURS]
    inside = made[INSIDE] > 0
    near = min(max(CONTRAST * float(made[COLOURS][:, inside].std(1, correction=0).mean()), NEAR[0]), NEAR[1])
    kept, kept_closeness = _in_colours(ours, theirs, edges, textured, overlap, near)
    if grey:
        theirs = torch.einsum("c,ncyx->nyx", theirs.new_tensor(LUMINANCE), theirs)[:, None].expand(-1, 3, -1, -1)
    fitted, gain = _mapped(ours, theirs, overlap, near)
    still_near = (near * gain.clamp(max=1)).clamp(min=LEVELS)[:, None, None]  # so that a faint copy is no copy of anything faint
    mapped, mapped_closeness = _in_colours(ours, fitted, _edges(made, moved, gain), textured, overlap, still_near)
    a, b = less_mean(made), less_mean(moved)
    cut = b * _soft(made[INSIDE] * moved[:, INSIDE])[:, None]
    structure = _rare_correlation(whitened(a, whitening), whitened(cut, whitening), before)
    return Agreement(torch.stack([kept, mapped, structure], 1), torch.stack([kept_closeness, mapped_closeness], 1), a, b,
                     made[INSIDE] * moved[:, INSIDE], textured)


def _edges(made, moved, gain=1.0):
    """-> (n, s, s): edge magnitudes of both, the training pictures' as they are under a gain (n,) of contrast; they are roots."""
    theirs = moved[:, 0] * torch.as_tensor(gain).sqrt().reshape(-1, 1, 1)
    return OURS * made[0] + (1 - OURS) * theirs


def whitened(structure: torch.Tensor, whitening: Whitening) -> torch.Tensor:
    """(…, 3, s, s) -> (…, 1200)."""
    small = F.interpolate(structure.reshape(-1, *structure.shape[-3:]), (RARE_CELLS, RARE_CELLS), mode="area")
    return whitening(small.flatten(1)).view(*structure.shape[:-3], -1)


def _rare_correlation(a, b, before):
    """Whitened structures (d,) and, as laid, (n, d), and the lengths of the latter as they were (n,) -> (n,), at least 0.

    Only one of the two is cut at the overlap's border: a cut that both share would correlate by itself.
    """
    length = ((1 - WHOLE_SHARE) * (b ** 2).sum(1) + WHOLE_SHARE * before ** 2).sqrt() * a.norm()
    return ((b @ a) / length.clamp(min=1e-9)).clamp(0, 1)


def _eroded(overlap):
    """(n, s, s) -> the same without a rim of a cell, on which what lies outside shows too; a canvas's own border stays."""
    return 1 - F.max_pool2d(1 - overlap, 3, stride=1, padding=1)


def _soft(overlap):
    """(n, s, s) -> the same, fading out over two cells; a canvas's own border does not fade."""
    return overlap * F.avg_pool2d(overlap, 5, stride=1, padding=2, count_include_pad=False)


def _in_colours(ours, theirs, edges, textured, overlap, near):
    """Colours (n, 3, s, s) of both -> how well the overlap agrees (n,), and every cell's closeness (n, s, s)."""
    difference = ((ours - theirs) ** 2).mean(1).sqrt()
    closeness = torch.exp(-((difference / (near + SLACK * edges)) ** 2) / 2)
    texture = (closeness * textured).sum((1, 2)) / (textured.sum((1, 2)) + LEAST_TEXTURE)
    flat = (overlap - textured).clamp(min=0)
    apart = ((ours - theirs) * flat[:, None]).sum((2, 3)) / flat.sum((1, 2)).clamp(min=1)[:, None]
    ground = torch.exp(-(apart ** 2).mean(1).sqrt() / GROUND)
    known = (flat.sum((1, 2)) / (0.1 * flat[0].numel())).clamp(max=1)  # a tenth of the canvas is enough ground
    return texture * (0.5 + 0.5 * (known * ground + (1 - known) * texture)), closeness


def _mapped(ours, theirs, weights, near):
    """Each channel of `theirs` times a gain plus an offset, by weighted least squares, and the mean gain (n,); cells that
    differ much count little in the second of two rounds."""
    fitted, weight = theirs, weights[:, None]
    for _ in range(2):
        total = weight.sum((2, 3), keepdim=True).clamp(min=1e-6)
        mean_a, mean_b = ((x * weight).sum((2, 3), keepdim=True) / total for x in (ours, theirs))
        spread = (weight * (theirs - mean_b) ** 2).sum((2, 3), keepdim=True) / total
        gain = (weight * (ours - mean_a) * (theirs - mean_b)).sum((2, 3), keepdim=True) / total / (spread + 1e-4)
        gain = gain.clamp(LEAST_GAIN, 3.0)
        fitted = mean_a + gain * (theirs - mean_b)
        difference = ((ours - fitted) ** 2).mean(1, keepdim=True).sqrt()
        weight = weights[:, None] / (1 + (difference / near) ** 2)
    return fitted, gain.mean((1, 2, 3))


def _local_correlation(a, b):
    """Structures (3, s, s) of both -> (s, s): correlation in windows of 5 × 5 cells, at least 0."""
    def windowed(x):
        return F.avg_pool2d(x[None], 5, stride=1, padding=2)[0]
    product = windowed((a * b).sum(0))
    return (product / (windowed((a ** 2).sum(0)) * windowed((b ** 2).sum(0))).clamp(min=1e-8).sqrt()).clamp(0, 1)


def agreeing(found: Agreement, which: int) -> torch.Tensor:
    """-> (16, 16): the share of each cell that lies in the overlap and agrees, for one of the laid pictures.

    A textured cell agrees by the best of the three closenesses; a flat one if the colours, as they are or mapped, are alike.
    """
    textured, eroded = found.textured[which], _eroded(found.overlap[which][None])[0]
    structure = _local_correlation(found.ours * eroded, found.theirs[which])
    closeness = torch.cat([found.closeness[which], structure[None]])
    best = torch.where(textured > 0.5, closeness.max(0).values, closeness[:2].max(0).values)
    agrees = (F.avg_pool2d(best[None], 3, stride=1, padding=1, count_include_pad=False)[0] >= AGREES) * found.overlap[which]
    return F.interpolate(agrees[None, None].float(), (CELLS, CELLS), mode="area")[0, 0]


def same_colours(found: Agreement, which: int) -> bool:
    """Whether most of the overlap has the colours that it had."""
    overlap = found.overlap[which]
    return float((found.closeness[which, 0] * overlap).sum()) >= SAME * float(overlap.sum())


# ----- above chance

TAIL = 0.97          # the quantile of chance that scores 1
LEAST_SPREAD = 0.12  # from the median to that quantile
BEYOND = 1.3         # evidence of 1 is stretched to −log(0.3)
# which evidence counts in which tier; the others brought more chance than copies
USED = {"as it is": ("kept", "mapped", "structure"), "flipped": ("kept",), "shift": ("kept", "mapped"),
        "zoom": ("kept", "structure"), "free": ("kept",)}
WAYS = np.array([[kind in USED[tier] for kind in EVIDENCE] for tier in TIERS])
# medians and spreads, a row for each tier, on 96 photographs; they count as much as so many of one's own pictures
PRIOR, USUAL = 20, np.array([
    [(0.04, 0.13, 0.10), (0.09, 0.21, 0.13), (0.26, 0.52, 0.45), (0.30, 0.52, 0.52), (0.28, 0.58, 0.53)],
    [(0.56, 0.52, 0.13), (0.57, 0.68, 0.76), (0.49, 0.37, 0.47), (0.57, 0.42, 0.47), (0.60, 0.36, 0.47)]])


def stretched(evidence: np.ndarray) -> np.ndarray:
    """Evidence (tiers, kinds) -> the same; of colours, so that the step from good to perfect agreement counts most."""
    return np.where(np.array(EVIDENCE) == "structure", evidence, -np.log(BEYOND - evidence))


def chance_levels(best: Sequence[np.ndarray]) -> np.ndarray:
    """Of each picture that copies nothing the best stretched evidence (tiers, kinds) with any training picture
    -> (2, tiers, kinds): median and spread, drawn to the usual ones where there are few pictures. Neither is lower than one's
    own: what a few pictures of one series have in common is known from them alone."""
    if not len(best):
        return USUAL
    middle = np.median(best, 0)
    own = np.stack([middle, np.maximum(np.quantile(best, TAIL, 0) - middle, LEAST_SPREAD)])
    return np.maximum(own, (len(best) * own + PRIOR * USUAL) / (len(best) + PRIOR))


def sureness(evidence: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Evidence and levels of chance -> (tiers, kinds): how far each lies above the median, in spreads; −∞ for what does not
    count."""
    return np.where(WAYS, (stretched(evidence) - levels[0]) / levels[1], -np.inf)
