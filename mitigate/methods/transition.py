"""Guidance policies: what to do with the two predictions, per image and per step. Pure; pipelines are the adapters' business.

Guidance is eps_uncond + scale · (eps_cond − eps_uncond), diffusers' convention: 1 is off, 0 is unconditional. Jain et al.
("Classifier-Free Guidance inside the Attraction Basin May Cause Memorization", CVPR 2025, arXiv 2411.16738) change the scale
while a trajectory is still inside the basin, and when that ends.
"""
from dataclasses import dataclass
from functools import cached_property

import torch

from rotescope.mitigate.contract.mitigation import NOT_NEGATIVE, GuidanceRun, Mitigation, check_ranges, no_transition
from rotescope.mitigate.contract.prediction import combine
from rotescope.mitigate.contract.turning_point import Point, check_points
from rotescope.mitigate.methods.local_minimum import FirstLocalMinimum

DYNAMIC = "dynamic"


class ScaleRun(GuidanceRun):
    """A run in which each image has a scale at each step, and that is all. Masks and scales stay on the CPU: nothing waits."""

    def __init__(self, n):
        self.n = n

    def scale(self, timestep):
        """-> float64 (n,)."""
        raise NotImplementedError

    def tracked(self, timestep):
        """Whose gap must be known, whatever the scale -> bool (n,)."""
        return torch.zeros(self.n, dtype=torch.bool)

    def branches(self, timestep):
        """Scale 0 is the unconditional prediction alone, scale 1 the conditional one."""
        scale, tracked = self.scale(timestep), self.tracked(timestep)
        return (scale != 0) | tracked, (scale != 1) | tracked

    def guide(self, step):
        return combine(step.cond, step.uncond, self.scale(step.timestep))


def more_colour(step, scale):
    """scale (n,) times the mean of Δ = ε_cond − ε_uncond over the picture, which says what colours to take."""
    gap = step.cond - step.uncond                                       # (n, C, h, w), or (n, patches, C)
    mean = gap.mean((2, 3) if gap.dim() == 4 else 1, keepdim=True)
    return combine(mean, torch.zeros_like(mean), scale)


@dataclass(frozen=True)
class TransitionGuidance(Mitigation):
    """One guidance scale until a transition, the pipeline's own from then on; image by image, in one pass.

    Parameters
    ----------
    before : float
        Scale before the transition: 0 is unconditional (STP, DTP), below 0 is opposite guidance (OG).
    transition : number, "noise:X", "steps:X" or "dynamic"
        A timestep τ from 0 to 1000; *before* means strictly t > τ. Or a level of noise, σ / (α + σ) = X, which is σ itself under
        flow matching; or the share X of the steps. Or the first step k with d[k−2] > d[k−1] < d[k], d the
        prediction gap of the image, which is guided from that very step on.
    latest : number, "noise:X" or "steps:X"
        A dynamic transition that has not come by this timestep happens there; −1 never. The paper states no fallback for a gap
        without a minimum, and in its released code such an image is never guided.
    after : float, optional
        Scale after the transition; the pipeline's guidance_scale unless given.
    ordinary_gap : float
        An image whose first gap is below this is taken for ordinary and guided from that step on; 0 none. A gap of exactly 0
        does not count: under flow matching x is the noise itself at first, and both predictions of ε agree.
    min_drop : float
        A minimum counts only if both its neighbours exceed it by this fraction of it, so that rounding does not decide.
    earliest : number, "noise:X" or "steps:X"
        A minimum above it does not count. A warm-up for models whose gap dips once at the start.
    colour : float, optional
        This project's own: until the transition, the scale of the mean of eps_cond − eps_uncond over the picture, which says what
        colours to take. `before` then scales the rest, which says what to put where. Without it `before` scales both. What is
        memorized is a layout, so opposite guidance need not turn away from the colours that the prompt asks for.

    Raises
    ------
    InputError
        For a number out of its range.

    References
    ----------
    Jain et al., "Classifier-Free Guidance inside the Attraction Basin May Cause Memorization", CVPR 2025, arXiv 2411.16738.

    Examples
    --------
    >>> policy = TransitionGuidance(before=-2.0, transition=650)
    >>> with mitigated(pipe, policy) as run:
    ...     found = pipe("a cat on a blue background", guidance_scale=7.5, num_inference_steps=4).images
    """
    before: float = 0.0
    transition: Point = 500
    latest: Point = 500
    after: float | None = None
    ordinary_gap: float = 0.0
    min_drop: float = 1e-4
    earliest: Point = 1000
    colour: float | None = None

    def __post_init__(self):
        check_points(words=(DYNAMIC,), transition=self.transition)
        check_points(lowest=-1, latest=self.latest)
        check_points(earliest=self.earliest)
        check_ranges(self, ordinary_gap=NOT_NEGATIVE, min_drop=NOT_NEGATIVE)

    def begin(self, n: int, guidance_scale: float, device: torch.device | str = "cpu") -> GuidanceRun:
        """A fresh run for n images."""
        return TransitionRun(self, n, guidance_scale if self.after is None else self.after)


class TransitionRun(ScaleRun):
    """The state of one pipeline call: which of its n images are past their transition, and since when."""

    def __init__(self, policy, n, after):
        super().__init__(n)
        self.policy, self.after = policy, after
        self.past, self.told = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)  # told: had a gap above 0
        self.transition_timesteps = no_transition(n)
        self.detector = FirstLocalMinimum(n, policy.min_drop) if policy.transition == DYNAMIC else None

    @cached_property
    def earliest(self):
        return self.timestep_of(self.policy.earliest)

    @cached_property
    def latest(self):
        """The timestep at which images are past their transition at the latest."""
        return self.timestep_of(self.policy.latest if self.detector else self.policy.transition)

    def limit(self):
        """The same for each image, where they differ: a number, or (n,)."""
        return self.latest

    def tracked(self, timestep):
        return self.past & False if self.detector is None and self.policy.colour is None else ~self.past

    def branches(self, timestep):
        self._mark(~self.past & (timestep <= torch.as_tensor(self.limit())), timestep)
        return super().branches(timestep)

    def guide(self, step):
        """A timestep that a multi-call scheduler repeats counts once."""
        if self.detector and not step.repeated:
            gap = step.gap.cpu()
            first, self.told = (gap > 0) & ~self.told, self.told | (gap > 0)
            fires = self.detector.update(gap) & (step.timestep <= self.earliest) | first & (gap < self.policy.ordinary_gap)
            self._mark(fires & ~self.past, step.timestep)
        guided = super().guide(step)
        return guided if self.policy.colour is None or self.past.all() else guided + more_colour(
            step, ~self.past * (self.policy.colour - self.policy.before))

    def _mark(self, rows, timestep):
        self.transition_timesteps[rows] = timestep
        self.past |= rows

    def scale(self, timestep):
        before, after = (torch.full((self.n,), s, dtype=torch.float64) for s in (self.policy.before, self.after))
        return torch.where(self.past, after, before)


PLAIN = TransitionGuidance(transition=1000)  # guidance from the first step on
