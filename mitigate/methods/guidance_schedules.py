"""Relatives of classifier-free guidance that the paper is measured against or named beside: other scales, another direction.

Three things an image may be given at each step: a scale that depends on time (six schedules), a scale that depends on time and
on its own gap (β-CFG), an unconditional prediction without the part that leads away from the conditional one (TCFG).
"""
from dataclasses import dataclass
from math import cos, pi, sin

import torch
from scipy.stats import beta

from rotescope.common.errors import InputError
from rotescope.mitigate.contract.mitigation import GuidanceRun, Mitigation
from rotescope.mitigate.contract.prediction import combine, noise_part, prediction_gap
from rotescope.mitigate.methods.transition import ScaleRun

SHAPES = {  # u = t / 1000, from 1 (noise) to 0 -> factor on the scale; as in the released code of Jain et al.
    "invlinear": lambda u: u,
    "linear": lambda u: 1 - u,
    "cosine": lambda u: cos(pi * u) + 1,
    "sine": lambda u: sin(pi * u - pi / 2) + 1,
    "v-shape": lambda u: 1 - u if u > 0.5 else u,
    "a-shape": lambda u: 1 - u if u < 0.5 else u,
}


@dataclass(frozen=True)
class ScheduledGuidance(Mitigation):
    """The pipeline's guidance_scale times a factor that depends on the timestep alone; `shape` is one of SHAPES."""
    shape: str = "linear"

    def __post_init__(self):
        if self.shape not in SHAPES:
            raise InputError(f"shape={self.shape!r}: take one of {', '.join(SHAPES)}")

    def begin(self, n, guidance_scale, device):
        return _ScheduledRun(SHAPES[self.shape], n, guidance_scale)


class _ScheduledRun(ScaleRun):
    def __init__(self, factor, n, guidance_scale):
        super().__init__(n)
        self.factor, self.guidance_scale = factor, guidance_scale

    def scale(self, timestep):
        return torch.full((self.n,), self.guidance_scale * self.factor(timestep / 1000), dtype=torch.float64)


@dataclass(frozen=True)
class BetaGuidance(Mitigation):
    """u + s · B(1 − t/1000; a, b) · (c − u) / ‖c − u‖₂^γ, B the density of the Beta distribution; u alone where c = u.

    β-CFG: Malarz et al. 2025, arXiv 2502.10574. Theirs counts progress in steps, which is the same on an even grid. c and u are
    the denoiser's two outputs in its own unit, ε or v: in ε the difference of a flow model is 0 at first, at σ = 1. With γ = 1
    its size has no say; γ = 0 leaves the curve alone. The authors' example is a = 2, b = 3, γ = 1.
    """
    a: float = 2.0
    b: float = 3.0
    gamma: float = 1.0

    def __post_init__(self):
        if self.a < 1 or self.b < 1:
            raise InputError(f"a={self.a}, b={self.b}: give 1 or more, or the scale is infinite at an end")

    def begin(self, n, guidance_scale, device):
        return _BetaRun(self, n, guidance_scale)


class _BetaRun(ScaleRun):
    def __init__(self, policy, n, guidance_scale):
        super().__init__(n)
        self.policy, self.guidance_scale = policy, guidance_scale

    def scale(self, timestep):
        progress = min(max(1 - timestep / 1000, 0.0), 1.0)
        factor = float(beta.pdf(progress, self.policy.a, self.policy.b))  # x^(a−1) (1−x)^(b−1) / B(a, b)
        return torch.full((self.n,), self.guidance_scale * factor, dtype=torch.float64)

    def tracked(self, timestep):
        return torch.full((self.n,), self.policy.gamma != 0)

    def guide(self, step):
        scale = self.scale(step.timestep)
        if self.policy.gamma:
            size = prediction_gap(noise_part(step.cond, step.sample), noise_part(step.uncond, step.sample))   # (n,)
            scale = torch.where(size > 0, scale.to(size) / size ** self.policy.gamma, 0)
        return combine(step.cond, step.uncond, scale)


@dataclass(frozen=True)
class TangentialGuidance(Mitigation):
    """Guidance from the unconditional prediction's projection on the main direction of the two. Costs what guidance costs.

    TCFG: Kwon et al., CVPR 2025, arXiv 2503.18137. As there, and in diffusers, the denoiser's output is taken as it is, whatever
    it predicts. Channels of a learned variance are guided plainly.
    """

    def begin(self, n, guidance_scale, device):
        return _TangentialRun(n, guidance_scale)


class _TangentialRun(GuidanceRun):
    def __init__(self, n, guidance_scale):
        self.everyone = torch.ones(n, dtype=torch.bool)
        self.scale = torch.full((n,), guidance_scale, dtype=torch.float64)

    def branches(self, timestep):
        return self.everyone, self.everyone

    def guide(self, step):
        cond, uncond = noise_part(step.cond, step.sample), noise_part(step.uncond, step.sample)
        damped = step.uncond.clone()
        damped[:, :uncond.shape[1]] = damp(cond, uncond)
        return combine(step.cond, damped, self.scale)


def damp(cond, uncond):
    """(n, …), (n, …) -> uncond without its part along the second right singular vector of [cond; uncond], per image.

    The first is v ∝ a·c + b·u, (a, b) the main axis (cos θ, sin θ) of the 2 × 2 Gram matrix: tan 2θ = 2 c·u / (c·c − u·u). Then
    (u·v) v = b (a·c + b·u), since the Gram matrix maps (a, b) to itself times |a·c + b·u|².
    """
    c, u = (x.flatten(1).to(torch.promote_types(x.dtype, torch.float32)) for x in (cond, uncond))
    theta = torch.atan2(2 * (c * u).sum(1), (c * c).sum(1) - (u * u).sum(1)) / 2
    a, b = theta.cos()[:, None], theta.sin()[:, None]
    return (b * (a * c + b * u)).view_as(uncond).to(uncond.dtype)
