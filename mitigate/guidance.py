"""Guidance policies: what to do with the two predictions, per image and per step. Pure; pipelines are the adapters' business.

Guidance is eps_uncond + scale · (eps_cond − eps_uncond), diffusers' convention: 1 is off, 0 is unconditional. Jain et al.
("Classifier-Free Guidance inside the Attraction Basin May Cause Memorization", CVPR 2025, arXiv 2411.16738) change the scale
while a trajectory is still inside the basin, and when that ends.
"""
from dataclasses import dataclass

import torch

from rotescope.errors import InputError
from rotescope.mitigate.mitigation import GuidanceRun, Mitigation
from rotescope.mitigate.transition import FirstLocalMinimum


def combine(eps_cond, eps_uncond, scale):
    """(n, …), (n, …), scale (n,) -> guided prediction (n, …). The same mix in ε, v and x₀ space."""
    return eps_uncond + scale.to(eps_cond.dtype).view(-1, *[1] * (eps_cond.dim() - 1)) * (eps_cond - eps_uncond)


@dataclass(frozen=True)
class TransitionGuidance(Mitigation):
    """Scale `before` until the transition, the pipeline's own guidance_scale from then on; per image, one pass.

    transition: a timestep τ (0…999; early means strictly t > τ), or "dynamic": the first step k with
    d[k−2] > d[k−1] < d[k], d the prediction gap of the image, which is guided from that very step on.
    latest: a dynamic transition that has not come by this timestep happens there. The paper states no fallback, and in its
    released code an image whose gap has no minimum is never guided; latest=-1 gives that.
    after: scale after the transition; None takes the pipeline's guidance_scale.
    """
    before: float = 0.0
    transition: int | str = 500
    latest: int = 500
    after: float | None = None

    def __post_init__(self):
        if self.transition != "dynamic" and not (isinstance(self.transition, int) and 0 <= self.transition <= 1000):
            raise InputError(f"transition={self.transition!r}: give a timestep from 0 to 1000, or dynamic")

    def begin(self, n, guidance_scale, device="cpu"):
        """A fresh run for n images."""
        return TransitionRun(self, n, guidance_scale if self.after is None else self.after, device)


class TransitionRun(GuidanceRun):
    """The state of one pipeline call: which of its n images are past their transition, and since when."""

    def __init__(self, policy, n, after, device):
        self.policy, self.after = policy, after
        self.past = torch.zeros(n, dtype=torch.bool, device=device)
        self.transition_timesteps = torch.full((n,), -1, dtype=torch.long, device=device)  # -1: not yet
        self.detector = FirstLocalMinimum(n, device) if policy.transition == "dynamic" else None

    def branches(self, timestep):
        """Tracking a gap needs both."""
        self._pass_at(timestep)
        scale = self._scale()
        tracked = ~self.past if self.detector else torch.zeros_like(self.past)
        return (scale != 0) | tracked, (scale != 1) | tracked

    def guide(self, step):
        """A timestep that a multi-call scheduler repeats counts once."""
        if self.detector and not step.repeated:
            self._mark(self.detector.update(step.gap) & ~self.past, step.timestep)
        return combine(step.cond, step.uncond, self._scale())

    def _pass_at(self, timestep):
        limit = self.policy.latest if self.detector else self.policy.transition
        if timestep <= limit:
            self._mark(~self.past, timestep)

    def _mark(self, rows, timestep):
        self.transition_timesteps[rows] = timestep
        self.past |= rows

    def _scale(self):
        before, after = (torch.full(self.past.shape, s, device=self.past.device) for s in (self.policy.before, self.after))
        return torch.where(self.past, after, before)


PLAIN = TransitionGuidance(transition=1000)  # guidance from the first step on
