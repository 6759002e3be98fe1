"""Which training pictures may match a generated one: views of both as short vectors, compared as matrix products.

A view is a window of a picture, perhaps turned, seen as 8 × 8 cells of structure and 4 × 4 of colours.
"""
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from rotescope.datasets.geometry.structure import COLOURS, ORIENTATIONS, STRUCTURE, Frame, Whitening, less_mean, oriented

CELLS_OF_STRUCTURE, CELLS_OF_COLOUR = 8, 4
ROWS = 8192        # training pictures that are compared at a time
WINDOWS = tuple((x, y, x + s, y + s) for s, places in ((0.8, (0.0, 0.2)), (0.5, (0.0, 0.5))) for y in places for x in places)
KEPT = ((0.0, 0.0, 1.0, 1.0), *WINDOWS, (0.1, 0.1, 0.9, 0.9), (0.25, 0.25, 0.75, 0.75))  # left, top, right, bottom
INSIDES = ((0.15, 0.3, 0.85, 1.0), (0.15, 0.0, 0.85, 0.7), (0.15, 0.15, 0.85, 0.85), KEPT[9],
           *((x / 8, y / 8, x / 8 + 0.5, y / 8 + 0.5) for y in range(5) for x in range(5)))
SUREST_FIRST = (3, 1, 5, 2, 0, 4)  # of the six similarities below
UPRIGHT = [o for o, (turns, _) in enumerate(ORIENTATIONS) if turns == 0]
SHIFTED = range(1, 5)  # views of 80 %: places in KEPT
OPPOSITE = {1: 4, 2: 3, 3: 2, 4: 1}


def view_vectors(channels: torch.Tensor, extent: tuple[float, float], windows,
                 whitening: Callable = lambda x: x) -> tuple[np.ndarray, np.ndarray]:
    """A canvas (7, 32, 32), of which the picture fills `extent`, and v windows in shares of the picture
    -> structure (v, 192) and colours (v, 48), float32, each of length 1, or 0 where the view shows none."""
    width, height = extent
    structure = torch.cat([less_mean(channels), channels[COLOURS]])
    boxes = torch.tensor(windows, dtype=torch.float32) * 2 - 1
    scale = torch.tensor([width, height])
    centres, halves = (boxes[:, :2] + boxes[:, 2:]) / 2 * scale, (boxes[:, 2:] - boxes[:, :2]) / 2 * scale
    axis = (torch.arange(16) + 0.5) / 8 - 1
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    grid = centres[:, None, None] + points[None] * halves[:, None, None]
    seen = F.grid_sample(structure.expand(len(boxes), -1, -1, -1), grid, align_corners=False, padding_mode="border")
    edges = F.avg_pool2d(seen[:, STRUCTURE], 16 // CELLS_OF_STRUCTURE)
    colours = F.avg_pool2d(seen[:, COLOURS], 16 // CELLS_OF_COLOUR) - 0.5
    return _unit(whitening(edges.flatten(1))).numpy(), _unit(colours.flatten(1)).numpy()


def _unit(x):
    length = x.norm(dim=1, keepdim=True)
    return x / length.clamp(min=1e-9) * (length > 1e-5)


class ViewIndex:
    """The views of n training pictures, as numbers of one byte."""

    def __init__(self, n: int, whitening: Whitening):
        self._whitening = whitening
        self.structure = np.zeros((len(KEPT), n, 3 * CELLS_OF_STRUCTURE ** 2), np.int8)
        self.colours = np.zeros((len(KEPT), n, 3 * CELLS_OF_COLOUR ** 2), np.int8)

    def put(self, row: int, frame: Frame) -> None:
        """Keep a training picture's views, unless it holds no structure: then it resembles nothing."""
        if not frame.holds_structure:
            return
        structure, colours = view_vectors(frame.channels, frame.extent, KEPT, self._whitening)
        self.structure[:, row], self.colours[:, row] = np.rint(structure * 127), np.rint(colours * 127)

    def nearest_rows(self, frame: Frame, k: int, without: Iterable[int] = ()) -> list[int]:
        """At most k rows for a generated picture, the likeliest first: by turns the next by the whole picture or by any view,
        in structure or in structure and colours."""
        if not frame.holds_structure or not self.structure.shape[1]:
            return []
        similarity = self._similarity(frame)
        similarity[:, list(without)] = -np.inf
        wanted = min(k, similarity.shape[1])
        orders = []
        for line in similarity[list(SUREST_FIRST)]:
            best = np.argpartition(-line, wanted - 1)[:wanted] if wanted else np.empty(0, int)
            orders.append([int(r) for r in best[np.argsort(-line[best], kind="stable")] if line[r] > 0])
        turns = [row for rank in range(wanted) for order in orders for row in order[rank:rank + 1]]
        return list(dict.fromkeys(turns))[:k]

    def _similarity(self, frame):
        """-> (6, n): by the whole picture as it is, by the best view, by its best part against a whole training picture; each in
        structure, and in structure and colours."""
        asked = _asked(frame, self._whitening)
        n = self.structure.shape[1]
        found = np.empty((6, n), np.float32)
        for first in range(0, n, ROWS):
            rows = slice(first, min(first + ROWS, n))
            views = []
            for kept, (structure, colours) in enumerate(asked):
                s, c = _products(self.structure[kept, rows], structure), _products(self.colours[kept, rows], colours)
                views.append(np.stack([s, (s + c) / 2]))
            best = np.max([v.max(2) for v in views], 0)
            found[0, rows], found[1, rows] = views[0][0, :, 0], views[0][1, :, 0]
            found[2:4, rows] = best
            found[4:, rows] = views[0][:, :, len(ORIENTATIONS):].max(2)
        return found


def _products(kept, asked):
    """Views as bytes (m, d) and as float32 (v, d) -> (m, v) their similarities. By torch, which keeps to one thread where several
    pictures are looked up at once; numpy's library would start as many as there are cores for each."""
    return (torch.from_numpy(kept).float() @ torch.from_numpy(asked).T / 127).numpy()


def _asked(frame, whitening):
    """-> for each kept view, the vectors of the generated picture's views that are compared with it, the whole one first."""
    look = partial(view_vectors, whitening=whitening)
    width, height = frame.extent
    turned = {o: oriented(frame.channels, orientation) for o, orientation in enumerate(ORIENTATIONS)}
    parts = (*WINDOWS[:4], *INSIDES)
    mirrored_parts = tuple((1 - right, top, 1 - left, bottom) for left, top, right, bottom in parts)
    whole = [look(turned[o], (height, width) if ORIENTATIONS[o][0] % 2 else (width, height), KEPT[:1])
             for o in range(len(ORIENTATIONS))]
    upright = look(turned[UPRIGHT[0]], (width, height), parts)
    mirrored = look(turned[UPRIGHT[1]], (width, height), mirrored_parts)
    asked = [_joined([*whole, upright, mirrored])]
    for kept in range(1, len(KEPT)):
        views = [whole[o] for o in UPRIGHT]
        if kept in SHIFTED:
            opposite = OPPOSITE[kept] - 1
            views.append((upright[0][opposite:opposite + 1], upright[1][opposite:opposite + 1]))
            views.append(look(turned[UPRIGHT[1]], (width, height), (KEPT[OPPOSITE[kept]],)))
        asked.append(_joined(views))
    return asked


def _joined(views):
    structure, colours = zip(*views, strict=True)
    return np.concatenate(structure), np.concatenate(colours)
