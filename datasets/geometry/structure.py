"""What pixels show of a picture's structure: where edges lie and how they run, whatever the colours; and its colours beside it.

A picture lies in its own shape in the middle of a square canvas. Each canvas holds seven channels: the root of the gradient's
magnitude, blurred; the same times cos 2t and times sin 2t, t the gradient's direction, so that light on dark and dark on
light count alike; red, green and blue; and 1 where the picture is. Edges weigh by the root so that faint ones, such as a
model draws, still count (Dalal and Triggs 2005 compare such roots). Points lie from −1 (left, top) to 1 on the canvas.

Structures are compared whitened: what training pictures have in common counts little, what is rare counts much. Two pictures
that each show one arc, or a dark corner, correlate by chance. Such patterns are where pictures of a population vary together,
so vectors are multiplied by a root of the inverse of their covariance before they are compared (Hariharan, Malik and Ramanan
2012 do so with histograms of gradients). Then a picture's own details decide.
"""
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

FINE, SIDE_OF_FRAME = 64, 32  # pixels a side of the canvas on which edges are found, and on which pictures are compared
FAINT, NOISIEST = 1.0, 12.0  # levels a pixel: weaker gradients are noise, as far as a noisy picture has that much
ROOT_OF = 64.0     # levels a pixel: a gradient whose root counts as 1
COLOURLESS = 3.0   # levels between the channels, up to which a picture is grey
STRUCTURE, COLOURS, INSIDE = slice(0, 3), slice(3, 6), 6
ORIENTATIONS = tuple((turns, mirror) for mirror in (False, True) for turns in range(4))  # mirrored first, then turned


@dataclass(frozen=True)
class Frame:
    """A picture on its canvas."""
    channels: torch.Tensor         # (7, 32, 32)
    extent: tuple[float, float]    # width and height, as shares of the canvas's side
    grey: bool                     # it has no colours

    @property
    def holds_structure(self) -> bool:
        """A flat picture holds none, and resembles nothing."""
        return bool(self.channels[0].any())


def small_picture(image: Image.Image) -> Image.Image:
    """A picture in any shape -> the same, RGB, its longer side 64 pixels; a small one stays as it is."""
    longest = max(image.size)
    size = [max(round(FINE * side / longest), 1) for side in image.size]
    return image.convert("RGB").resize(size, Image.BOX if longest >= 2 * FINE else Image.BICUBIC)


def frame_of(image: Image.Image) -> Frame:
    """A picture in any shape -> its Frame."""
    small = small_picture(image)
    width, height = small.size
    pixels = torch.from_numpy(np.array(small, np.float32)).permute(2, 0, 1)
    canvas = torch.cat([_edges(pixels), pixels / 255, torch.ones(1, height, width)])
    left, top = (FINE - width) // 2, (FINE - height) // 2
    canvas = F.pad(canvas, (left, FINE - width - left, top, FINE - height - top))
    grey = float((pixels.amax(0) - pixels.amin(0)).mean()) <= COLOURLESS
    return Frame(pooled(canvas, SIDE_OF_FRAME), (width / FINE, height / FINE), grey)


def pooled(canvas: torch.Tensor, side: int | tuple[int, int]) -> torch.Tensor:
    """(c, h, w) -> (c, side, side): means over areas."""
    return F.interpolate(canvas[None], side if isinstance(side, tuple) else (side, side), mode="area")[0]


def _edges(pixels):
    """(3, h, w) in levels -> (3, h, w): the edge channels. The strongest of red, green and blue says how an edge runs."""
    soft = _blurred(pixels, 0.7)
    padded = F.pad(soft[None], (1, 1, 1, 1), mode="replicate")[0]
    across, down = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2, (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2
    strength, channel = (across ** 2 + down ** 2).max(0, keepdim=True)
    across, down, strength = across.gather(0, channel), down.gather(0, channel), strength.sqrt()
    faint = min(max(FAINT, _noise(pixels)), NOISIEST)
    root = ((strength - faint).clamp(min=0) / ROOT_OF).sqrt()
    square = (strength ** 2).clamp(min=1e-6)
    return _blurred(torch.cat([root, root * (across ** 2 - down ** 2) / square, root * 2 * across * down / square]), 1.0)


def _noise(pixels):
    """-> standard deviation of noise, in levels, from the median second difference (after Immerkær 1996)."""
    x = pixels.mean(0)
    if min(x.shape) < 3:
        return 0.0
    second = (x[1:-1, 1:-1] * 4 - 2 * (x[1:-1, 2:] + x[1:-1, :-2] + x[2:, 1:-1] + x[:-2, 1:-1])
              + x[2:, 2:] + x[2:, :-2] + x[:-2, 2:] + x[:-2, :-2])
    return float(second.abs().median()) / (6 * 0.6745)


@lru_cache(maxsize=8)
def _bell(sigma):
    x = torch.arange(-3, 4, dtype=torch.float32)
    weights = torch.exp(-x ** 2 / (2 * sigma ** 2))
    return weights / weights.sum()


def _blurred(channels, sigma):
    """(c, h, w) -> the same, under a Gaussian of so many pixels; a border goes on as it ends."""
    x, bell = F.pad(channels[:, None], (3, 3, 3, 3), mode="replicate"), _bell(sigma)
    return F.conv2d(F.conv2d(x, bell[None, None, None]), bell[None, None, :, None])[:, 0]


def oriented(channels: torch.Tensor, orientation: tuple[int, bool]) -> torch.Tensor:
    """(…, 7, s, s) -> the canvas of the picture mirrored, if so, and then turned clockwise by that many right angles."""
    turns, mirror = orientation
    if not turns and not mirror:
        return channels
    channels = torch.rot90(channels.flip(-1) if mirror else channels, -turns, (-2, -1)).clone()
    if turns % 2:
        channels[..., 1:3, :, :].neg_()
    if mirror:
        channels[..., 2, :, :].neg_()
    return channels


def orientation_matrix(orientation: tuple[int, bool]) -> np.ndarray:
    """-> (2, 2): where points of the canvas go under `oriented`; y points down."""
    turns, mirror = orientation
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
    return np.linalg.matrix_power(quarter, turns % 4) @ np.diag([-1.0 if mirror else 1.0, 1.0])


def less_mean(channels: torch.Tensor) -> torch.Tensor:
    """(…, 4 or 7, s, s), structure first and inside last -> (…, 3, s, s): the structure, its edge magnitudes less their mean
    over the picture; 0 outside."""
    inside = channels[..., -1:, :, :]
    mean = (channels[..., :1, :, :] * inside).sum((-2, -1), keepdim=True) / inside.sum((-2, -1), keepdim=True).clamp(min=1e-6)
    return torch.cat([(channels[..., :1, :, :] - mean) * inside, channels[..., 1:3, :, :]], -3)


class Whitening:
    """A linear map of vectors of d numbers, made from their covariance (d, d). `shrunk`: of the largest variance, added to
    each."""

    def __init__(self, covariance: torch.Tensor, shrunk: float):
        largest = _largest_variance(covariance) or 1.0
        one = torch.eye(len(covariance))
        root = torch.linalg.cholesky(covariance + (shrunk * largest + 1e-9) * one)
        inverse = torch.linalg.solve_triangular(root, one, upper=False)
        self.matrix = (inverse.T * (shrunk * largest) ** 0.5)  # (d, d): at most 1 times a vector's length

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """(…, d) -> the same, whitened."""
        return vectors @ self.matrix


def _largest_variance(covariance, steps=64):
    """By power iteration, which no repeated eigenvalue stops."""
    direction = covariance.diagonal()
    for _ in range(steps):
        direction = covariance @ (direction / direction.norm().clamp(min=1e-30))
    return float(direction.norm())


def learned(canvases: list[torch.Tensor], cells: int, shrunk: float) -> Whitening:
    """Canvases (7, 32, 32) -> the Whitening of structure at cells × cells, over all eight orientations."""
    return Whitening(_squares(canvases, cells) / max(len(canvases), 1), shrunk)


def learned_apart(parts: list[list[torch.Tensor]], cells: int, shrunk: float) -> list[Whitening]:
    """For each part of the canvases the Whitening that is `learned` from all others."""
    of_each = [_squares(part, cells) for part in parts]
    whole, n = torch.stack(of_each).sum(0), sum(map(len, parts))
    return [Whitening((whole - own) / max(n - len(part), 1), shrunk) for own, part in zip(of_each, parts, strict=True)]


def _squares(canvases, cells):
    """-> (d, d): products of the numbers of each canvas's structure, at length 1, its mean over orientations; summed."""
    seen = [pooled(less_mean(oriented(c, o)), cells).flatten() for c in canvases for o in ORIENTATIONS]
    x = torch.stack(seen) if seen else torch.zeros(0, 3 * cells ** 2)
    x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-9)
    return x.T @ x / len(ORIENTATIONS)
