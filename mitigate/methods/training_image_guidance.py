"""Guidance away from the nearest training image, found at every step (AMG).

The search has a descriptor of its own, because it must be differentiated: colours at 32 × 32 less each channel's mean, at length
1, so that a product is a cosine. It is exact on copies and blind to moved or scaled objects; an image of one colour is like none.
"""
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F

from rotescope.common.errors import InputError
from rotescope.datasets.images.to_pixels import to_pixels
from rotescope.datasets.manifest import Manifest
from rotescope.mitigate.contract.mitigation import NOT_NEGATIVE, Mitigation, check_ranges
from rotescope.mitigate.contract.prediction import combine
from rotescope.mitigate.denoiser.first_step import at_least_float, gradients
from rotescope.mitigate.methods.text_embedding import BothBranches
from rotescope.mitigate.methods.training_images import different_images, identity_of
from rotescope.models.prediction import clean_of, prediction_kind, rates_at, slope_at

COLOUR_SIDE = 32


def describe_colours(images):
    """images (n, 3, H, W), of whatever range -> (n, 3 · 32 · 32), rows of length 1 (0 for one flat colour)."""
    small = F.interpolate(images, size=(COLOUR_SIDE, COLOUR_SIDE), mode="area")
    return F.normalize((small - small.mean((2, 3), keepdim=True)).flatten(1), dim=1, eps=1e-6)


def load_descriptors(training):
    """Training images, as identity_of takes them -> descriptors (N, 3072), kept for the next call."""
    return _descriptors(identity_of(training))


@lru_cache(maxsize=2)
def _descriptors(identity):
    return torch.cat([describe_colours(to_pixels(example.open(), COLOUR_SIDE * 2)[None])
                      for example in different_images(identity)])


@dataclass(frozen=True)
class AntiMemorizationGuidance(Mitigation):
    """AMG: Chen et al., Towards Memorization-Free Diffusion Models, CVPR 2024, arXiv 2404.00922, equations 9 to 17.

    At each step x̂₀ = (x − √(1 − ᾱ) ε̂)/√ᾱ is decoded and its nearest training image found, at cosine σ. Where σ > λ,
        ε̂ ← ε̂ − s₁ (ε(c) − ε(∅)) + c₃ √(1 − ᾱ) ∇ₓ σ,   s₁ = max(min(c₁ σ, s − 1), 0)
    (despecification and dissimilarity; deduplication, against the neighbour's caption, is left out). The paper gives
    neither c₁, c₃ nor the parabola of λ: `despecification`, `dissimilarity` and λ = `threshold` · (1 − (t/T)²) are this
    project's. Its SSCD is replaced by `describe_colours`, and ∇ goes through the decoder and x̂₀ with ε̂ held constant,
    not through the denoiser. No row on top: a decoding at each step, and another with its gradient where σ > λ.
    training: the training images: a folder, their manifest's file, or the manifest itself.
    """
    training: str | Path | Manifest = ""
    despecification: float = 10.0
    dissimilarity: float = 100.0
    threshold: float = 0.5
    families = ("sd",)
    differentiates = ("vae",)

    def __post_init__(self):
        check_ranges(self, despecification=NOT_NEGATIVE, dissimilarity=NOT_NEGATIVE)

    def check(self):
        load_descriptors(self.training)

    def prepare(self, call):
        self.check()

    def begin(self, n, guidance_scale, device):
        return AntiMemorizationRun(self, n, guidance_scale, device)


class AntiMemorizationRun(BothBranches):
    def __init__(self, settings, n, guidance_scale, device):
        super().__init__(settings, n, guidance_scale, device)
        self.known = load_descriptors(settings.training).to(device)

    def guide(self, step):
        pipe, settings = step.call.pipe, self.settings
        guided = combine(step.cond, step.uncond, torch.full_like(step.gap, self.scale))
        clean = clean_estimator(pipe.scheduler, step.timestep)
        closest = similarity(pipe.vae, self.known, clean(step.sample, guided))
        near = closest > settings.threshold * (1 - (step.timestep / pipe.scheduler.config.num_train_timesteps) ** 2)
        if not near.any():
            return guided
        less = (settings.despecification * closest).clamp(min=0, max=self.scale - 1)                       # s₁
        away = torch.zeros_like(guided)
        away[near] = similarity_gradient(pipe.vae, self.known, clean, step.sample[near], guided[near]).to(guided.dtype)
        to_output = rates_at(pipe.scheduler, step.timestep)[1] / slope_at(pipe.scheduler, step.timestep)  # ε -> output's unit
        mended = combine(step.cond, step.uncond, self.scale - less) + settings.dissimilarity * to_output * away
        return torch.where(near.view(-1, 1, 1, 1), mended, guided)


def similarity(vae, known, latents):
    """The cosine of each decoded image to its nearest known one: latents (n, C, h, w), known (N, D) -> (n,)."""
    images = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample
    return (describe_colours(at_least_float(images)) @ known.to(torch.promote_types(images.dtype, torch.float32)).T).amax(1)


def similarity_gradient(vae, known, clean, sample, output):
    """∇ₓ σ (n, C, h, w), the denoiser's output held constant."""
    with gradients():
        x = sample.detach().clone().requires_grad_()
        return torch.autograd.grad(similarity(vae, known, clean(x, output.detach().clone())).sum(), x)[0]


def clean_estimator(scheduler, timestep):
    """-> (sample, output) -> x̂₀, as the scheduler's prediction type has it; equation 12 for ε. InputError for x₀ and flow."""
    kind, rates = prediction_kind(scheduler), rates_at(scheduler, timestep)
    if kind not in ("epsilon", "v_prediction"):
        raise InputError(f"this mitigation serves models that predict ε or v, and this one predicts {kind}")
    return lambda sample, output: clean_of(kind, output, sample, *rates)
