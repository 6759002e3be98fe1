"""The contract: what a mitigation may do around and inside one call of a pipeline. adapters/ bring it to diffusers.

A mitigation overrides what it needs: `prepare` (prompts, embeddings, initial noise), `attach` (attention, neurons), `survey`
(a run beforehand), `begin` (how the two predictions of a step are combined). Several can be chained; only one of them may
combine predictions. Each of the four is done by the whole chain before the next one is.
"""
from contextlib import nullcontext
from dataclasses import dataclass, fields
from math import inf, isfinite
from pathlib import Path
from typing import Any, ClassVar

import torch

from rotescope.common.errors import InputError
from rotescope.datasets.manifest import Manifest
from rotescope.mitigate.contract.pipeline_call import PipelineCall
from rotescope.mitigate.contract.turning_point import timestep_of


@dataclass(frozen=True)
class Mitigation:
    """Does nothing. Subclasses are frozen dataclasses whose fields are the settings."""
    families: ClassVar[tuple[str, ...] | None] = None  # the pipelines that it can serve, of FAMILIES; None: all
    looks_inside: ClassVar[bool] = False  # does it call the UNet by itself, or edit its attention? It then sees the text alone

    differentiates: ClassVar[tuple[str, ...]] = ()  # components of the pipeline through which it takes gradients

    def __str__(self):
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in settings_of(self).items())})"

    def check(self):
        """Raise InputError for a setting that is missing: before a model is loaded."""

    def check_pipeline(self, pipe):
        """Raise InputError for a pipeline, of a family that is served, without what is needed: before anything is sampled."""

    def prepare(self, call):
        """Before the pipeline runs: change `call`, a PipelineCall."""

    def attach(self, call):
        """A context manager around the pipeline call, which undoes what it did."""
        return nullcontext()

    def survey(self, call):
        """When all of a chain are prepared and attached: see by call.probe what the pipeline will do under the others."""

    def begin(self, n, guidance_scale, device):
        """A fresh GuidanceRun for n images, or None to leave the predictions to the others."""
        return


def settings_of(mitigation):
    """-> {setting: what JSON can say of it}: a path as text, a manifest as how many images and which hash."""
    return {f.name: _told(getattr(mitigation, f.name)) for f in fields(mitigation)}


def _told(value):
    if isinstance(value, Manifest):
        return f"a manifest of {len(value)} images, {value.hash}"
    return str(value) if isinstance(value, Path) else value


TIMESTEP, NOT_NEGATIVE, COUNT = (0, 1000), (0, inf), (1, inf)  # ranges of settings, ends included


def check_ranges(settings, **ranges):
    """InputError for a setting of these names that lies outside its (lowest, highest)."""
    for name, (low, high) in ranges.items():
        if not low <= (value := getattr(settings, name)) <= high:
            raise InputError(f"{name}={value}: give {f'a number from {low} to {high}' if isfinite(high) else f'{low} or more'}")


class GuidanceRun:
    """How a mitigation combines the predictions of one pipeline call, image by image."""
    transition_timesteps: Any = None  # float64 (n,), see no_transition
    call: Any = None  # the PipelineCall, known from before the first step on; None under a guider

    def timestep_of(self, point):
        """A point on the way -> its timestep on the scheduler of this call, whose timesteps are set by the first step."""
        if isinstance(point, str) and self.call is None:
            raise InputError(f"{point} is a point on a scheduler's way, and a guider sees no scheduler: give a timestep")
        return timestep_of(point, self.call and self.call.pipe.scheduler)

    def branches(self, timestep):
        """Which predictions a step needs: (cond, uncond), each a bool (n,)."""
        raise NotImplementedError

    def guide(self, step):
        """Step -> guided prediction (n, …), in the unit of the denoiser's output."""
        raise NotImplementedError


def no_transition(n):
    """−1 for each image: no transition (yet). Timesteps need not be whole: flow matching and Karras' spacing have others."""
    return torch.full((n,), -1.0, dtype=torch.float64)


def same_timestep(one, other):
    """Is one a repetition of the other by a multi-call scheduler, some of which round anew: 908.18213, 908.18182? Others lie
    further apart, at 200 steps of any spacing."""
    return abs(one - other) < 0.01


@dataclass
class Step:
    """One denoiser call on the way, for n images."""
    timestep: float
    index: int               # 0…, counts distinct timesteps: a multi-call scheduler repeats them
    repeated: bool           # this timestep was seen in the call before
    sample: torch.Tensor     # what the denoiser saw (n, …)
    cond: torch.Tensor       # its outputs (n, …); zero where a branch was not asked for
    uncond: torch.Tensor
    gap: torch.Tensor        # ‖eps_cond − eps_uncond‖₂ (n,) in ε, NaN where a branch was not asked for
    call: PipelineCall | None  # None under a guider, which sees no call
    denoise: object          # denoise(images=None, **changed arguments) -> the conditional half's output (n, …) once more: for
                             # the images, a bool (n,), one row each and zero for the others; None: for all
