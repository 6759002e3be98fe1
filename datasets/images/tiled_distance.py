"""Carlini et al.'s distance between pictures, tile by tile."""
import torch


def tiled_distances(images, others=None, tiles=4):
    """Images (n, 3, h, w) and others (m, 3, h, w), or the images themselves, in [0, 1] -> (n, m), 0…1: the worst tile's distance.

    δ(a, b) = max_t √( Σ_{i∈t} (aᵢ − bᵢ)² / d_t ) over tiles × tiles pieces t of d_t values, 4 × 4 in the paper (Carlini et al.
    2023, "Extracting Training Data from Diffusion Models", section 4.2). The worst, so that a shared plain background does not
    make two images alike. Among themselves images are compared without a matrix product, which loses differences below 0.001.
    """
    mode = "donot_use_mm_for_euclid_dist" if others is None else "use_mm_for_euclid_dist_if_necessary"
    worst = None
    for a, b in zip(_pieces(images, tiles), _pieces(images if others is None else others, tiles), strict=True):
        distances = torch.cdist(a, b, compute_mode=mode) / a.shape[1] ** 0.5
        worst = distances if worst is None else torch.maximum(worst, distances, out=worst)
    return worst


def _pieces(images, tiles):
    """-> for each tile that has pixels (n, d_t)."""
    pieces = (piece for row in images.tensor_split(tiles, 2) for piece in row.tensor_split(tiles, 3))
    return [p.flatten(1) for p in pieces if p.numel()]
