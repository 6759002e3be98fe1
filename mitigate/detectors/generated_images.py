"""Detectors that need nothing but generated images: a memorized prompt gives the same picture from every noise."""
from dataclasses import dataclass
from typing import ClassVar

import networkx as nx
import numpy as np
import torch
from PIL import Image
from scipy.ndimage import sobel

from rotescope.common.errors import InputError
from rotescope.datasets.images.tiled_distance import tiled_distances
from rotescope.mitigate.contract.families import FAMILIES, guidance_arguments


@dataclass(frozen=True)
class BlackBox:
    """Samples n images a prompt and looks at these alone."""
    families: ClassVar[tuple[str, ...] | None] = None  # every pipeline that takes prompts, generators, steps and a guidance scale
    n: int = 4
    num_inference_steps: int = 50
    guidance_scale: float | None = None   # the family's own

    def __post_init__(self):
        if self.n < 2 or self.num_inference_steps < 1:
            raise InputError(f"n={self.n}, num_inference_steps={self.num_inference_steps}: n must be 2 or more, steps 1 or more")

    @property
    def rows(self):
        """Denoiser rows a prompt, where the scheduler calls once a step and the pipeline computes two branches."""
        return 2 * self.n * self.num_inference_steps

    def observe(self, pipe, texts, noise_seeds):
        """-> a PIL image for each noise seed."""
        pipe.set_progress_bar_config(disable=True)
        return pipe(prompt=list(texts), generator=[torch.Generator().manual_seed(s) for s in noise_seeds],
                    num_inference_steps=self.num_inference_steps,
                    **guidance_arguments(pipe, len(texts), self.guidance_scale)).images

    def score(self, observed):
        """The n images of one prompt -> its score."""
        raise NotImplementedError


@dataclass(frozen=True)
class EdgeAgreement(BlackBox):
    """Share of pixels that are an edge in more than half of the one-step images (Webster 2023).

    One step gives a blur, unless the picture is known by heart: then its edges are there at once, and in the same places.
    """
    num_inference_steps: int = 1
    families = tuple(name for name, row in FAMILIES.items() if row.fewest_steps == 1)
    threshold: float = 1.5

    def score(self, observed):
        return edge_agreement([np.asarray(i.resize((256, 256), Image.Resampling.LANCZOS), np.float64) / 255 for i in observed],
                              self.threshold)


def edge_agreement(images, threshold=1.5):
    """Images (h, w, 3) in [0, 1] -> share of pixels whose Sobel magnitude, summed over channels, exceeds `threshold` in most.

    As in the released code, the filter is that of three dimensions: it smooths along the channels, too, by 1 2 1 with mirrored
    ends. Where the channels agree in sign, the sum is 4 times that of each by itself, so that 1.5 is an edge from a step of 1/32
    in grey, or of 3/32 in one channel, on; where they differ, as from red to green, they cancel in part.
    """
    edges = [np.hypot(sobel(i, 0), sobel(i, 1)).sum(2) > threshold for i in images]
    return float((np.mean(edges, 0) > 0.5).mean())


@dataclass(frozen=True)
class Cliques(BlackBox):
    """Minus the smallest distance δ at which `clique` of the n images are within δ of each other, tile by tile.

    Carlini et al. 2023 join images whose tiled distance is below 0.15 and call a prompt memorized from a clique of 10 on:
    that is a score above −0.15 with n=500,clique=10. Here 4 of 16, for the price.
    """
    n: int = 16
    clique: int = 4
    tiles: int = 4                   # a side: 128 of 512 pixels

    def __post_init__(self):
        super().__post_init__()
        if not 2 <= self.clique <= self.n or self.tiles < 1:
            raise InputError(f"clique={self.clique}, tiles={self.tiles}: give a clique of 2 to n={self.n}, and 1 tile or more")

    def score(self, observed):
        images = torch.stack([torch.from_numpy(np.array(i.convert("RGB"))) for i in observed])
        return -clique_distance(tiled_distances(images.permute(0, 3, 1, 2) / 255, tiles=self.tiles).numpy(), self.clique)


def clique_distance(distances, size):
    """(n, n) -> the smallest δ at which the graph that joins i and j where distance ≤ δ has a clique of `size`."""
    upper = np.triu_indices(len(distances), 1)
    steps = np.unique(distances[upper])
    low, high = 0, len(steps) - 1     # at the largest distance all are joined
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _has_clique(distances <= steps[middle], size) else (middle + 1, high)
    return float(steps[low])


def _has_clique(joined, size):
    joined = joined & ~np.eye(len(joined), dtype=bool)
    return any(len(clique) >= size for clique in nx.find_cliques(nx.from_numpy_array(joined)))
