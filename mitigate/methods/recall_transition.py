"""A dynamic rule for whoever has the training images: opposite guidance only as long as the model has one of them in mind.

What an image will be is told early by the clean estimate of the conditional prediction, x̂₀ = (x_t − σ_t ε(c)) / α_t: under an
ordinary caption it is a mean of many pictures and like none of them, under a memorized one it is soon a training image.
"""
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F

from rotescope.common.errors import InputError, RunError
from rotescope.datasets.manifest import Manifest
from rotescope.mitigate.contract.mitigation import Mitigation
from rotescope.mitigate.contract.turning_point import Point, check_points
from rotescope.mitigate.denoiser.probe import image_latents
from rotescope.mitigate.methods.training_image_guidance import clean_estimator
from rotescope.mitigate.methods.training_images import different_images, identity_of
from rotescope.mitigate.methods.transition import TransitionRun

LATENT_SIDE, BATCH, BLOCK, LEAST = 32, 16, 1024, 8
_kept: WeakKeyDictionary = WeakKeyDictionary()   # VAE -> {identity of the training images: KnownImages}


@dataclass(frozen=True)
class KnownImages:
    """Training images as a pipeline's VAE sees them."""
    vectors: torch.Tensor      # (N, d), rows of length 1
    to_other: torch.Tensor     # (N,) each one's cosine to the nearest other

    def similarity(self, latents):
        """Latents (n, C, h, w) -> the cosine of each to the nearest training image (n,)."""
        return (describe_latents(latents) @ self.vectors.to(latents.device).T).amax(1)


def describe_latents(latents):
    """Latents (n, C, h, w) -> (n, d), rows of length 1: at 32 × 32 where they are larger, each channel less its mean."""
    small = F.adaptive_avg_pool2d(latents.float(), LATENT_SIDE) if latents.shape[-1] > LATENT_SIDE else latents.float()
    return F.normalize((small - small.mean((2, 3), keepdim=True)).flatten(1), dim=1, eps=1e-6)


def known_images(training, pipe):
    """Training images, as identity_of takes them -> KnownImages, kept for the next call. InputError where too few differ."""
    identity, kept = identity_of(training), _kept.setdefault(pipe.vae, {})
    if identity not in kept:
        kept.clear()
        kept[identity] = _encoded(different_images(identity), pipe)
    return kept[identity]


def _encoded(examples, pipe):
    if len(examples) < LEAST:
        raise InputError(f"{len(examples)} training images are too few to tell how alike they are by nature: {LEAST} or more")
    x = torch.cat([describe_latents(image_latents(pipe, [e.open() for e in examples[i:i + BATCH]]))
                   for i in range(0, len(examples), BATCH)])
    if not x.isfinite().all():
        raise RunError("the VAE gives no numbers in this precision: load the pipeline with a VAE that does")
    to_other = [(x[i:i + BLOCK] @ x.T).scatter_(1, torch.arange(i, min(i + BLOCK, len(x)), device=x.device)[:, None], -1).amax(1)
                for i in range(0, len(x), BLOCK)]
    return KnownImages(x.cpu(), torch.cat(to_other).cpu())


@dataclass(frozen=True)
class RecallTransition(Mitigation):
    """Scales `before` and `colour` until `warm_up`, as og-stp-layout has them, and guidance from then on, but for an image that
    is becoming a training image: that one is held back until `transition`. This project's own, after Jain et al.

    It is one if at any step so far the cosine of x̂₀ of its conditional prediction to the nearest training image, in the VAE's
    latents, exceeded what the `quantile` of training images have to the nearest other one. Whoever is recognised after the
    warm-up is held back anew. One pass and no row on top; each training image is encoded once for a pipeline.
    training: the training images: a folder, their manifest's file, or the manifest itself.
    transition, warm_up: timesteps, noise:X or steps:X. A warm-up of 1000 leaves ordinary images as plain guidance makes them, to
    the bit.
    threshold: a cosine, where many training images are twins and the quantile says nothing; 0 takes the quantile.
    """
    training: str | Path | Manifest = ""
    before: float = -3.0
    transition: Point = 600
    colour: float | None = 1.0
    warm_up: Point = 880
    quantile: float = 0.8
    threshold: float = 0.0
    families = ("sd", "sdxl")

    def check(self):
        identity_of(self.training)
        if not 0 < self.quantile < 1 or not 0 <= self.threshold < 1:
            raise InputError(f"quantile={self.quantile}, threshold={self.threshold}: give numbers between 0 and 1")
        check_points(transition=self.transition, warm_up=self.warm_up)
        if not isinstance(self.transition, str) and not isinstance(self.warm_up, str):
            self.check_order(self.transition, self.warm_up)

    def check_order(self, transition, warm_up):
        """InputError for a warm-up that ends after the transition, both timesteps."""
        if transition > warm_up:
            raise InputError(f"transition={self.transition}, warm_up={self.warm_up}: take a warm-up that is not below the "
                             "transition")

    def prepare(self, call):
        call.memory[self] = known_images(self.training, call.pipe)

    def begin(self, n, guidance_scale, device):
        return RecallRun(self, n, guidance_scale)


class RecallRun(TransitionRun):
    """Which images of one pipeline call were recognised so far."""

    def __init__(self, policy, n, after):
        super().__init__(policy, n, after)
        self.recognised = torch.zeros(n, dtype=torch.bool)

    @cached_property
    def known(self):
        return self.call.memory[self.policy]

    @cached_property
    def threshold(self):
        return self.policy.threshold or self.known.to_other.quantile(self.policy.quantile).item()

    @cached_property
    def warm_up(self):
        """The timestep at which it ends."""
        found = self.timestep_of(self.policy.warm_up)
        self.policy.check_order(self.latest, found)
        return found

    def limit(self):
        return torch.where(self.recognised, float(self.latest), float(self.warm_up))

    def tracked(self, timestep):
        return torch.full((self.n,), timestep > self.latest)

    def guide(self, step):
        if step.timestep > self.latest:
            clean = clean_estimator(self.call.pipe.scheduler, step.timestep)(step.sample, step.cond)
            self.recognised |= (self.known.similarity(clean) > self.threshold).cpu()
            self.past &= ~self.recognised  # guided before it was found out: that is over
            self.transition_timesteps[self.recognised] = -1
        return super().guide(step)
