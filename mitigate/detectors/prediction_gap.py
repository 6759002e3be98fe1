"""Detectors that read the prediction gap Δ = eps_cond − eps_uncond alone: its size, its details, its fall."""
from dataclasses import dataclass

import torch
from torch.nn.functional import avg_pool2d

from rotescope.common.errors import InputError
from rotescope.mitigate.denoiser.probe import Probe
from rotescope.mitigate.detectors.whitebox import WhiteBox


@dataclass(frozen=True)
class Magnitude(WhiteBox):
    """Mean of ‖Δ_t‖₂ over the first `steps` timesteps (Wen et al., ICLR 2024; one norm an image, not one over the batch)."""
    steps: int = 1

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.steps <= self.num_inference_steps:
            raise InputError(f"steps={self.steps}: give 1 to num_inference_steps={self.num_inference_steps}")

    @property
    def rows(self):
        return 2 * self.n * self.steps

    def look(self, probe, pipe, texts):
        return torch.stack([look.magnitude for look in probe.walk(self.steps)]).mean(0)


@dataclass(frozen=True)
class Layout(Magnitude):
    """Mean over the first `steps` timesteps of ‖(1/n) Σᵢ (Δᵢ − blur Δᵢ)‖₂, the sum over a prompt's n seeds: this project's own.

    What a caption says of colours, or of a thing somewhere, lies in the coarse part of Δ or changes with the noise; a memorized
    picture has its details at their places from every noise. The blur is a mean over `window` of the side of the latents.
    """
    n: int = 16
    steps: int = 3
    window: float = 0.375

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.window <= 1:
            raise InputError(f"window={self.window}: give a share of the side above 0 and up to 1")

    def observe(self, pipe, texts, noise_seeds):
        """-> details of Δ (steps, C, h, w) for each image."""
        probe = Probe(pipe, texts, noise_seeds, self.num_inference_steps, self.guidance_scale)
        return list(torch.stack([details(look.gap, self.window) for look in probe.walk(self.steps)], 1))

    def score(self, observed):
        return torch.stack(observed).mean(0).flatten(1).norm(dim=1).mean().item()


@dataclass(frozen=True)
class Drop(Magnitude):
    """How far ‖Δ_t‖₂ fell: the mean of its ln over the first seventh of the steps after the very first, less ln at the last.

    This project's own, of the drop that Jain et al. see where a trajectory leaves the attraction basin. Here the trajectory is a
    guided one: once a memorized picture is there, the caption has nothing to say that the unconditional prediction does not see.
    """
    num_inference_steps: int = 25
    steps: int = 15

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 3:
            raise InputError(f"steps={self.steps}: a drop shows over 3 steps or more")

    def look(self, probe, pipe, texts):
        levels = torch.stack([look.magnitude for look in probe.walk(self.steps)]).log()   # (steps, n)
        return levels[1:1 + max(1, self.steps // 7)].mean(0) - levels[-1]


def details(x, window):
    """x (n, C, h, w) minus its mean over an odd number of pixels around each, about `window` of the width, at least 3."""
    size = max(3, 2 * round((window * x.shape[-1] - 1) / 2) + 1)
    return x - avg_pool2d(x, size, stride=1, padding=size // 2, count_include_pad=False)
