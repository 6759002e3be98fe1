"""A dynamic rule that knows what is ordinary: opposite guidance only for images whose gap stands out from that of such prompts.

The printed rule of Jain et al. waits for a local minimum of the prediction gap d, which other models than Stable Diffusion 1.4
show at once, or never. Here d is compared with what prompts that are known to be ordinary show at the same timestep.
"""
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rotescope.common.errors import InputError
from rotescope.mitigate.contract.mitigation import Mitigation, no_transition, same_timestep
from rotescope.mitigate.contract.turning_point import Point, check_points
from rotescope.mitigate.methods.transition import ScaleRun, more_colour

FEWEST = 8  # ordinary images; a hundred tell their spread


@dataclass(frozen=True)
class Calibration:
    """Gaps d of ordinary images over the first steps of plain guidance: mean and deviation of log d, and how far they stray."""
    timesteps: tuple[float, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    scores: tuple[float, ...]     # of each ordinary image, ascending
    guidance_scale: float
    num_inference_steps: int

    @classmethod
    def of(cls, gaps, timesteps, guidance_scale, num_inference_steps):
        """gaps (images, steps) -> Calibration. InputError for fewer than 8 images, or gaps that do not differ."""
        logs = np.log(np.maximum(np.asarray(gaps, float), 1e-12))
        told = (logs > np.log(1e-12)).any(0)  # not the first step of flow matching, where x is the noise: both predictions agree
        logs, timesteps = logs[:, told], [t for t, tells in zip(timesteps, told, strict=True) if tells]
        check_ordinary(len(logs))
        if not told.any() or not (logs.std(0) > 0).all():
            raise InputError(f"the prediction gaps of all {len(logs)} ordinary images are alike: give different prompts, and see "
                             "that the model draws")
        mean, deviation = logs.mean(0), logs.std(0, ddof=1)
        scores = np.sort(running_mean((logs - mean) / deviation).max(1))
        rows = [tuple(map(float, row)) for row in (timesteps, mean, deviation, scores)]
        return cls(*rows, guidance_scale, num_inference_steps)  # type: ignore[call-arg, arg-type]

    @classmethod
    def load(cls, file):
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
            given: Any = {name: tuple(map(float, v)) if isinstance(v := content[name], list) else v
                          for name in cls.__dataclass_fields__}
            return cls(**given)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} is no calibration ({error}): make one with rotescope calibrate") from error

    def as_json(self):
        return {"schema_version": 1, **asdict(self)}

    def z(self, gap, timestep):
        """Gap (n,) -> standard deviations above the ordinary at this timestep, between the calibrated ones interpolated."""
        at = [np.interp(timestep, self.timesteps[::-1], row[::-1]) for row in (self.mean, self.deviation)]
        return (gap.double().clamp_min(1e-12).log() - at[0]) / at[1]


def check_ordinary(n):
    """InputError where n ordinary images are too few to calibrate on."""
    if n < FEWEST:
        raise InputError(f"{n} ordinary images are too few: give {FEWEST} or more, better 100, by more prompts or more seeds")


def running_mean(z):
    """(images, steps) -> the mean of each row up to each step."""
    return np.cumsum(z, 1) / np.arange(1, z.shape[1] + 1)


@dataclass(frozen=True)
class CalibratedTransition(Mitigation):
    """Plain guidance for an image whose gap looks ordinary; scale `before` until `transition` for one whose gap does not.

    As long as the timestep is within what was calibrated, the score of an image is the running mean of z = (log d − μ_t) / σ_t.
    Where it exceeds the `quantile` of ordinary images' highest scores, the image is held back from that very step on. So
    1 − quantile is the share of ordinary images that are touched at all; the others are plain guidance, bit for bit. That share
    holds for as many looks as the ordinary images had: a run that takes more or fewer is refused.
    colour: the scale of the mean of Δ meanwhile, as TransitionGuidance has it; with it, `before` opposes the layout alone.
    calibration: what `rotescope calibrate` wrote, for this model, guidance_scale and about this number of steps.
    """
    calibration: str = ""
    before: float = -2.0
    transition: Point = 650
    colour: float | None = None
    quantile: float = 0.95

    def __post_init__(self):
        check_points(transition=self.transition)

    def check(self):
        if not self.calibration:
            raise InputError("dtp-calibrated needs calibration=FILE: make one with rotescope calibrate")
        if not 0 < self.quantile < 1:
            raise InputError(f"quantile={self.quantile}: give a number between 0 and 1")
        Calibration.load(self.calibration)

    def begin(self, n, guidance_scale, device):
        known = Calibration.load(self.calibration)
        if abs(known.guidance_scale - guidance_scale) > 1e-6:
            raise InputError(f"{self.calibration} holds for guidance_scale={known.guidance_scale}, not {guidance_scale}")
        return CalibratedRun(self, known, n, guidance_scale)


class CalibratedRun(ScaleRun):
    """Which images of one pipeline call were found to stand out, and whether they are still held back."""

    def __init__(self, policy, known, n, guidance_scale):
        super().__init__(n)
        self.policy, self.known, self.after = policy, known, guidance_scale
        self.threshold = float(np.quantile(known.scores, policy.quantile))
        self.total, self.steps = torch.zeros(n, dtype=torch.float64), 0
        self.held = torch.zeros(n, dtype=torch.bool)
        self.transition_timesteps = no_transition(n)

    @cached_property
    def transition(self):
        return self.timestep_of(self.policy.transition)

    def scale(self, timestep):
        before, after = (torch.full((self.n,), s, dtype=torch.float64) for s in (self.policy.before, self.after))
        return torch.where(self.held & (timestep > self.transition), before, after)

    def watches(self, timestep):
        last = self.known.timesteps[-1]
        return timestep > last or same_timestep(timestep, last)

    def tracked(self, timestep):
        return torch.full((self.n,), self.watches(timestep))

    def guide(self, step):
        if not self.watches(step.timestep):
            self._check_looks()
        elif not step.repeated and step.gap.any():
            self.total += self.known.z(step.gap.cpu(), step.timestep)
            self.steps += 1
            self._check_looks(at_most=True)
            self.held |= self.total / self.steps > self.threshold
            if step.timestep > self.transition:
                self.transition_timesteps[self.held] = -1  # guided before it was found out: that is over
        guided_now = (~self.held | torch.tensor(step.timestep <= self.transition)) & (self.transition_timesteps < 0)
        self.transition_timesteps[guided_now] = step.timestep
        guided, held_now = super().guide(step), self.held & (step.timestep > self.transition)
        if self.policy.colour is None or not held_now.any():
            return guided
        return guided + more_colour(step, held_now * (self.policy.colour - self.policy.before))

    def _check_looks(self, at_most=False):
        """The highest of more running means is higher, and of fewer lower, than the ordinary scores were."""
        due = len(self.known.timesteps)
        if self.steps > due or self.steps < due and not at_most:
            often = "more" if self.steps > due else "less"
            raise InputError(f"{self.policy.calibration} looked {due} times down to t = {self.known.timesteps[-1]:g}, over "
                             f"{self.known.num_inference_steps} steps, and this run {often} often: calibrate with the "
                             "num_inference_steps that you sample with")
