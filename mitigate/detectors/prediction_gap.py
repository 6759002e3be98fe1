"""Detectors that read the prediction gap Δ = cond − uncond alone: its size, its details, its fall. They see it while the pipeline
samples, on every family of which the way its two branches meet is known.

The unit of Δ is that of ε, as in the papers; under flow matching it is that of the velocity. There ε = x_t + (1 − σ) u, so that
the two predictions of ε are one at the first step, where σ = 1; the gap in velocity is there the gap in x₀, and at each later σ
it is 1/σ of that.
"""
from dataclasses import dataclass

import torch
from torch.nn.functional import avg_pool2d

from rotescope.common.errors import InputError
from rotescope.mitigate.adapters.watched_steps import watched_steps
from rotescope.mitigate.contract.catalogue import EVERY
from rotescope.mitigate.contract.prediction import noise_part
from rotescope.mitigate.denoiser.first_step import at_least_float, norms
from rotescope.mitigate.detectors.whitebox import WhiteBox
from rotescope.models.prediction import prediction_kind, slope_at


@dataclass(frozen=True)
class Magnitude(WhiteBox):
    """Mean of ‖Δ_t‖₂ over the first `steps` timesteps (Wen et al., ICLR 2024; one norm an image, not one over the batch)."""
    families = EVERY
    guidance_scale: float | None = None   # the family's own
    steps: int = 1

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.steps <= self.num_inference_steps:
            raise InputError(f"steps={self.steps}: give 1 to num_inference_steps={self.num_inference_steps}")

    @property
    def rows(self):
        return 2 * self.n * self.steps

    def observe(self, pipe, texts, noise_seeds):
        """-> what was seen of each image."""
        seen = watched_steps(pipe, texts, noise_seeds, self.see, steps=self.steps, num_inference_steps=self.num_inference_steps,
                             guidance_scale=self.guidance_scale)
        return self.over_steps(torch.stack(seen, 1))

    def see(self, step):
        """A step -> what is kept of it (n, …)."""
        return norms(gap_at(step))

    def over_steps(self, seen):
        """(n, steps, …) -> an entry for each image."""
        return seen.mean(1).tolist()


@dataclass(frozen=True)
class Layout(Magnitude):
    """Mean over the first `steps` timesteps of ‖(1/n) Σᵢ (Δᵢ − blur Δᵢ)‖₂, the sum over a prompt's n seeds: this project's own.

    What a caption says of colours, or of a thing somewhere, lies in the coarse part of Δ or changes with the noise; a memorized
    picture has its details at their places from every noise. The blur is a mean over `window` of the side of the latents. Packed
    latents are taken as the grid of their tokens.
    """
    n: int = 16
    steps: int = 3
    window: float = 0.375

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.window <= 1:
            raise InputError(f"window={self.window}: give a share of the side above 0 and up to 1")

    def see(self, step):
        return details(as_grid(gap_at(step), step.call), self.window)

    def over_steps(self, seen):
        return list(seen)

    def score(self, observed):
        return norms(torch.stack(observed).mean(0)).mean().item()


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

    def over_steps(self, seen):
        levels = seen.log()
        return (levels[:, 1:1 + max(1, self.steps // 7)].mean(1) - levels[:, -1]).tolist()


def gap_at(step):
    """Δ of a Step (n, …), at least fp32: in ε, or in velocity under flow matching."""
    scheduler = step.call.pipe.scheduler
    factor = 1.0 if prediction_kind(scheduler) == "flow" else slope_at(scheduler, step.timestep)
    cond, uncond = (at_least_float(noise_part(output, step.sample)) for output in (step.cond, step.uncond))
    return factor * (cond - uncond)


def as_grid(x, call):
    """Latents as a denoiser has them -> (n, C, h, w): packed ones (n, tokens, C) side by side, high and wide as the picture."""
    if x.dim() == 3:
        tall = (call.get("height") or 1) / (call.get("width") or 1)   # where neither is given the picture is square
        height = round((x.shape[1] * tall) ** 0.5)
        return x.transpose(1, 2).unflatten(2, (height, x.shape[1] // height))
    return x.flatten(1, -3)


def details(x, window):
    """x (n, C, h, w) minus its mean over an odd number of pixels around each, about `window` of the width, at least 3."""
    size = max(3, 2 * round((window * x.shape[-1] - 1) / 2) + 1)
    return x - avg_pool2d(x, size, stride=1, padding=size // 2, count_include_pad=False)
