"""The first steps of plain guidance, seen while a pipeline of any family samples, which is stopped as soon as they are done."""
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from rotescope.mitigate.adapters.pipeline_hook import mitigated
from rotescope.mitigate.contract.families import guidance_arguments, two_branch_scale
from rotescope.mitigate.contract.mitigation import Mitigation, Step
from rotescope.mitigate.contract.prediction import combine
from rotescope.mitigate.methods.text_embedding import BothBranches


class _Seen(Exception):
    """Leaves the pipeline: enough was seen."""


@dataclass(frozen=True, eq=False)
class _Watch(Mitigation):
    """Plain guidance, of which `look` sees each of the first distinct timesteps."""
    look: Callable
    steps: int
    found: list = field(default_factory=list)

    def begin(self, n, guidance_scale, device):
        return _WatchedRun(self, n, guidance_scale, device)


class _WatchedRun(BothBranches):
    def guide(self, step):
        watch = self.settings
        if not step.repeated:
            watch.found.append(watch.look(step))
        if len(watch.found) == watch.steps:
            raise _Seen
        return combine(step.cond, step.uncond, torch.full((len(step.cond),), float(self.scale)))


def watched_steps(pipe: Any, texts: list[str], noise_seeds: list[int], look: Callable[[Step], torch.Tensor], *, steps: int,
                  num_inference_steps: int, guidance_scale: float | None = None) -> list[torch.Tensor]:
    """look(step) at each of the first `steps` distinct timesteps of one call, which makes an image for each text.

    Parameters
    ----------
    pipe : diffusers pipeline
        Of a family whose two branches meet: see contract/families.py.
    texts : list of str
        One an image; no more than one call of the pipeline may hold (sampling/jobs.py).
    noise_seeds : list of int
        Of each image's own generator.
    look : function
        Sees a Step, whose predictions have the sign that the scheduler sees.
    steps, num_inference_steps : int
        How many are looked at, and of how many.
    guidance_scale : float, optional
        In diffusers' convention, above 1; unless given, as two_branch_scale says.

    Raises
    ------
    InputError
        Before anything is sampled, for a pipeline of one branch, or of no known family.
    """
    watch, scale = _Watch(look, steps), two_branch_scale(pipe, guidance_scale)
    pipe.set_progress_bar_config(disable=True)
    try:
        with mitigated(pipe, watch):
            pipe(prompt=list(texts), generator=[torch.Generator().manual_seed(s) for s in noise_seeds],
                 num_inference_steps=num_inference_steps, **guidance_arguments(pipe, len(texts), scale))
    except _Seen:
        pipe.maybe_free_model_hooks()   # as the pipeline does at its end
    return watch.found
