"""Base-Anchored Filtering: channels of the update that align weakly with the base's principal subspace are taken out; no data.

Yu Zhe et al., Filtering Memorization from Parameter-Space in Diffusion Models, 2026, arXiv 2605.10439, **after the abstract**:
it says that strongly aligned channels are kept as what generalizes, and weakly aligned ones suppressed. How alignment is
measured, how large the subspace is and how many channels go is ours: see base_alignment, and the fields below.
"""
from dataclasses import dataclass

import torch

from rotescope.common.errors import InputError
from rotescope.models.adapters.low_rank import base_alignment, with_gains
from rotescope.train.repair.weight_repair import WeightRepair

SHARE = 4  # the principal subspace has a quarter of the dimensions of the base's weight


@dataclass(frozen=True)
class BaseAnchored(WeightRepair):
    """dose: the quantile of alignment below which a layer's channels are taken out, each layer by its own: .5 of rank 8 is 4.

    base_rank: dimensions of the base's principal subspace; a quarter of the smaller side of each weight unless given.
    """
    name = "base-anchored"
    needs_data = False
    cost = "a singular value decomposition of each layer"
    dose_name = "quantile"
    doses: tuple[float, ...] = (0.25, 0.5, 0.75)
    base_rank: int | None = None

    def update(self, context, dose):
        if not context.weights:
            raise InputError(f"{context.found.path} has no layer with channels that belongs to the model: take another way")
        after = dict(context.updates)
        for name, weight in context.weights.items():
            channels = context.channels[name]
            alignment = base_alignment(channels, weight, self.base_rank or max(1, min(weight.shape) // SHARE))
            after[name] = with_gains(context.updates[name], channels, weakest_off(alignment, dose))
        return after

    def check(self):
        super().check()
        if self.base_rank is not None and self.base_rank < 1:
            raise InputError(f"base_rank={self.base_rank}: give 1 dimension or more, or leave it out")


def weakest_off(scores: torch.Tensor, share: float) -> torch.Tensor:
    """-> gains (m,): 0 for the share of channels with the lowest scores, rounded to whole channels, 1 for the others."""
    gains = torch.ones_like(scores)
    gains[scores.argsort()[:round(share * len(scores))]] = 0
    return gains

