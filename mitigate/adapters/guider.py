"""Guidance policies as a diffusers guider, for modular pipelines (SDXL, SD3 and whatever else takes a guider).

    pipe.update_components(guider=guider_for(pipe, "og-dtp", guidance_scale=7.5))
    latents = pipe(prompt=prompts, negative_prompt="", output="latents")
    pipe.guider.run.transition_timesteps, pipe.guider.denoiser_rows, pipe.guider.active

The pipeline runs its denoiser once for each batch that the guider prepares. A prediction that no image of the batch needs is not
prepared, so it costs nothing; one that some need is computed for all. (diffusers' own ClassifierFreeGuidance(start=…) is
conditional before its start, and its SD3 pipeline sends no unconditional batch without a negative prompt.)
"""
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput

from rotescope.common.errors import InputError
from rotescope.common.outputs import whole
from rotescope.mitigate.adapters.compatibility import check_scheduler
from rotescope.mitigate.contract.mitigation import Mitigation, Step, same_timestep
from rotescope.mitigate.contract.prediction import combine, differs, prediction_gap
from rotescope.mitigate.methods.registry import get_mitigation
from rotescope.models.prediction import slope_at


def guider_for(pipe: Any, mitigation: str, guidance_scale: float = 7.5) -> "MitigationGuider":
    """A mitigation as a diffusers guider, for a modular pipeline.

    Parameters
    ----------
    pipe : diffusers pipeline
        Its scheduler tells the guider the unit of the predictions.
    mitigation : str
        A name of `list_mitigations`, perhaps with settings. It must work on the two predictions alone.
    guidance_scale : float
        Of the mitigation after its transition, in diffusers' convention; above 1.

    Returns
    -------
    MitigationGuider
        To be handed over by `pipe.update_components(guider=…)`.

    Raises
    ------
    InputError
        For a mitigation that works on something else, a scale of 1 or less, and a scheduler that counts time otherwise.

    Examples
    --------
    >>> guider_for(pipe, "og-stp:transition=600").guidance_scale
    7.5
    """
    check_scheduler(pipe.scheduler)
    guider = MitigationGuider(mitigation, guidance_scale)
    guider.scheduler = pipe.scheduler
    return guider


class MitigationGuider(BaseGuidance):
    """Any entry of the registry that works on the two predictions alone; others, and a scale of 1 or less, raise InputError."""
    _input_predictions = ["pred_cond", "pred_uncond"]
    scheduler = None  # None: the denoiser predicts ε

    @register_to_config
    def __init__(self, mitigation: str = "og-stp", guidance_scale: float = 7.5):
        super().__init__()
        self.guidance_scale, self.mitigation = guidance_scale, get_mitigation(mitigation)
        kind = type(self.mitigation)
        beyond = any(getattr(kind, name) is not getattr(Mitigation, name) for name in ("prepare", "attach", "survey"))
        if kind.begin is Mitigation.begin or beyond:
            raise InputError(f"{mitigation}: a guider sees the two predictions alone, and this one works on something else")
        if guidance_scale <= 1:
            raise InputError(f"guidance_scale={guidance_scale} sends one branch only: give a scale above 1")
        self.run: Any = None
        self.needs: Any = None
        self.needed, self.last = self._input_predictions, torch.inf

    def new(self, **kwargs):
        """A copy, perhaps with other settings; diffusers' own forgets what is not in the configuration."""
        copy = super().new(**kwargs)
        copy.scheduler = self.scheduler
        return copy

    def set_state(self, step, num_inference_steps, timestep):
        """The pipeline's call at the head of each step; step 0 begins a new run."""
        super().set_state(step, num_inference_steps, timestep)
        if step == 0:
            self.run, self.last, self.index = None, torch.inf, -1

    def prepare_inputs(self, data):
        """{name: (cond, uncond)} -> a batch for each prediction that is needed now."""
        pairs = [v for v in data.values() if isinstance(v, tuple) and isinstance(v[0], torch.Tensor)]
        if not pairs or any(v[1] is None for v in pairs):
            raise InputError('there is no unconditional batch to guide from: give the pipeline negative_prompt=""')
        n = len(pairs[0][0])
        if self.run is None:
            self.run = self.mitigation.begin(n, self.guidance_scale, pairs[0][0].device)
            self.denoiser_rows, self.active = torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.bool)
        self.needs = [which.any().item() for which in self.run.branches(whole(float(self._timestep)))]
        self.needed = [name for name, need in zip(self._input_predictions, self.needs, strict=True) if need]
        return [self._prepare_batch(data, self._input_predictions.index(name), name) for name in self.needed]

    def prepare_inputs_from_block_state(self, data, input_fields):
        """The same where a pipeline names the fields of its state instead: {name: field, or (cond field, uncond field)}."""
        return self.prepare_inputs({name: tuple(getattr(data, f, None) for f in fields) if isinstance(fields, tuple)
                                    else getattr(data, fields, None) for name, fields in input_fields.items()})

    def forward(self, pred_cond=None, pred_uncond=None):
        """The predictions that were asked for -> GuiderOutput; afterwards the guider wants both again."""
        given = pred_uncond if pred_cond is None else pred_cond
        cond, uncond = (torch.zeros_like(given) if p is None else p for p in (pred_cond, pred_uncond))
        timestep = whole(float(self._timestep))
        repeated, self.last = same_timestep(timestep, self.last), timestep
        self.index += not repeated
        gap = prediction_gap(cond, uncond, 1.0 if self.scheduler is None else abs(slope_at(self.scheduler, timestep)))
        gap = gap if all(self.needs) else torch.full_like(gap, torch.nan)
        self.denoiser_rows += len(self.needed)
        guided = self.run.guide(Step(timestep, self.index, repeated, given, cond, uncond, gap, None, None))
        plain = combine(cond, uncond, torch.full((len(given),), self.guidance_scale))
        self.active = self.active.to(guided.device) | differs(guided, plain) | (not all(self.needs))
        self.needed = self._input_predictions
        return GuiderOutput(pred=guided, pred_cond=pred_cond, pred_uncond=pred_uncond)

    @property
    def is_conditional(self):
        """Is the batch now in the denoiser the conditional one?"""
        return self.needed[max(self._count_prepared, 1) - 1] == "pred_cond"

    @property
    def num_conditions(self):
        return len(self.needed)
