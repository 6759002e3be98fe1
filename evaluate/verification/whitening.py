"""What training pictures have in common counts little, what is rare counts much: structure freed of its correlations.

Two pictures that each show one arc, or a dark corner, correlate by chance. Such patterns are where pictures of a population vary
together, so vectors are multiplied by a root of the inverse of their covariance before they are compared (Hariharan, Malik and
Ramanan 2012 do so with histograms of gradients). Then a picture's own details decide.
"""
import torch

from rotescope.evaluate.verification.structure import ORIENTATIONS, less_mean, oriented, pooled

AT_MOST = 400        # pictures, each in eight orientations, from which correlations are learned


class Whitening:
    """A linear map of vectors of d numbers, made from m vectors (m, d). `shrunk`: of the largest variance, added to each."""

    def __init__(self, vectors: torch.Tensor, shrunk: float):
        x = vectors.double()
        x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-9)
        covariance = x.T @ x / max(len(x), 1)
        largest = float(torch.linalg.matrix_norm(covariance, 2)) if len(x) else 1.0
        root = torch.linalg.cholesky(covariance + (shrunk * largest + 1e-9) * torch.eye(x.shape[1], dtype=torch.float64))
        inverse = torch.linalg.solve_triangular(root, torch.eye(x.shape[1], dtype=torch.float64), upper=False)
        self.matrix = (inverse.T * (shrunk * largest) ** 0.5).float()  # (d, d): at most 1 times a vector's length

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """(…, d) -> the same, whitened."""
        return vectors @ self.matrix


def sampled_rows(n: int, at_most: int) -> list[int]:
    """Rows spread evenly over n, at most so many."""
    step = max(n / at_most, 1.0)
    return [int(i * step) for i in range(min(n, at_most))]


def learned(canvases: list[torch.Tensor], cells: int, shrunk: float) -> Whitening:
    """Canvases (7, 32, 32) -> the Whitening of structure at cells × cells, over all eight orientations."""
    seen = [pooled(less_mean(oriented(c, o)), cells).flatten() for c in canvases for o in ORIENTATIONS]
    return Whitening(torch.stack(seen) if seen else torch.zeros(0, 3 * cells ** 2), shrunk)
