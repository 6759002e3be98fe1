"""The loss that a denoiser was trained by, on given latents, noise and timesteps, under texts that are encoded already.

The pipeline itself prepares whatever else its denoiser is given: it is stopped at its first call, which computes one branch, and
the latents, the time and, where asked, the text in that call are replaced.
"""
import math

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from rotescope.common.errors import InputError
from rotescope.mitigate.contract.families import (
    FAMILIES,
    SAMPLE_NAMES,
    TIME_NAMES,
    call_parameters,
    denoiser_of,
    family,
    guidance_arguments,
)
from rotescope.mitigate.contract.prediction import noise_part
from rotescope.mitigate.contract.text_inputs import EMBEDDING, TEXT_INPUTS
from rotescope.mitigate.denoiser.first_step import at_least_float
from rotescope.mitigate.denoiser.probe import first_denoiser_call
from rotescope.models.prediction import TARGETS, diffusion_rates, eps_slope, noisy_latents, prediction_kind
from rotescope.models.vae_latents import mean_latents

TRIED = 64                                        # side in pixels of the picture that tells how much smaller latents are
FURTHER = ("strength", "mask_image", "noise_level", "controlnet_conditioning_scale", "adapter_conditioning_scale")


def why_no_loss(pipe):
    """Why the loss of this pipeline's denoiser is not known, as the end of a sentence; "" where it is."""
    if family(pipe) not in TEXT_INPUTS:
        return f"{type(pipe).__name__} is of none of the families whose loss is known: {', '.join(TEXT_INPUTS)}"
    unet = getattr(pipe, "unet", None)
    if takes_more(pipe) or unet is not None and unet.config.in_channels != pipe.vae.config.latent_channels:
        return f"{type(pipe).__name__} is given a picture beside the prompt: take the class that makes one of a prompt alone"
    return ""


def takes_more(pipe):
    """Whether a pipeline is given a picture, a mask or an edge map beside the prompt."""
    return any(name in call_parameters(type(pipe)) for name in FURTHER)


class BranchLoss:
    """Of the denoiser of `pipe`, for n rows.

    texts: arguments of the pipeline, {name: n rows}, `prompt_embeds` among them. side: of its pictures in pixels, its own unless
    given.
    """

    def __init__(self, pipe, texts, side=None):
        self.denoiser, self.row = denoiser_of(pipe), FAMILIES[family(pipe)]
        size = {} if side is None else {"height": side, "width": side}
        self.arguments = first_denoiser_call(
            pipe, **guidance_arguments(pipe, len(texts[EMBEDDING]), 1.0), **texts, **size, num_inference_steps=2,
            generator=torch.Generator().manual_seed(0))
        self.sample, self.time = (next(n for n in names if n in self.arguments) for names in (SAMPLE_NAMES, TIME_NAMES))
        self.state = TEXT_INPUTS[self.row.name].state
        self.kind, self.steps = prediction_kind(pipe.scheduler), pipe.scheduler.config.num_train_timesteps
        self.alphas_cumprod = None if self.kind == "flow" else DDPMScheduler.from_config(pipe.scheduler.config).alphas_cumprod
        self.unit = self.denoiser.config.timestep_scale if self.row.name == "sana" else 1   # of the time that it is told

    @property
    def first_timestep(self):
        """The least timestep of training: under flow matching 0 is no noise at all."""
        return 1 if self.kind == "flow" else 0

    def rates(self, timesteps, like):
        """Timesteps (n,) -> α and σ, each (n, 1, 1, 1) in the precision of `like`."""
        if self.alphas_cumprod is None:
            sigma = timesteps.to(like) / self.steps
            found = 1 - sigma, sigma
        else:
            found = tuple(rate[timesteps] for rate in diffusion_rates(self.alphas_cumprod.to(like)))
        return [rate.view(-1, 1, 1, 1) for rate in found]

    def __call__(self, latents, noise, timesteps, text=None):
        """Latents and noise (n, C, h, w), timesteps (n,), perhaps text embeddings (n, …) in place of those of the call -> (n,),
        the mean over the elements, of ε where ε or v is predicted, else of the velocity."""
        rates = self.rates(timesteps, latents)
        x = self._as_seen(noisy_latents(latents, noise, *rates))
        output = noise_part(self._output(x, timesteps, text), x)
        error = self.row.sign * at_least_float(output) - self._as_seen(TARGETS[self.kind](latents, noise, *rates))
        to_eps = 1.0 if self.kind == "flow" else eps_slope(self.kind, *rates)
        return torch.as_tensor(to_eps).flatten() ** 2 * error.square().flatten(1).mean(1)

    def _output(self, x, timesteps, text):
        told = torch.as_tensor(self.row.told(timesteps, self.steps) * self.unit)
        time = _one_of(self.arguments[self.time])
        changed = {self.sample: _like(x, self.arguments[self.sample]),
                   self.time: told.to(time) if time.is_floating_point() else told}
        if text is not None:
            changed[self.state] = _like(text, self.arguments[self.state])
        output = self.denoiser(**{**self.arguments, "return_dict": False, **changed})[0]
        return torch.stack(output) if isinstance(output, list) else output

    def _as_seen(self, latents):
        """(n, C, h, w) -> as the denoiser is given them: a token for each 2 × 2 latents, or for each one, or a frame."""
        shape = _shape_of(self.arguments[self.sample])
        if len(shape) == 5:
            return latents.unsqueeze(2)
        if len(shape) == 4:
            return latents
        return (latents if shape[2] == latents.shape[1] else F.pixel_unshuffle(latents, 2)).flatten(2).mT


def _one_of(value):
    """A tensor of its kind."""
    return value[0] if isinstance(value, list) else torch.as_tensor(value)


def _shape_of(value):
    return (len(value), *value[0].shape) if isinstance(value, list) else value.shape


def _like(x, given):
    """Rows (n, …) as `given` has them: in its precision, as a list where it is one. InputError for another shape."""
    if x.shape != _shape_of(given):
        raise InputError(f"the denoiser is given {tuple(_shape_of(given))} where this would be {tuple(x.shape)}: its loss is not "
                         "known")
    return list(x.to(given[0])) if isinstance(given, list) else x.to(given)


@torch.no_grad()
def own_side(pipe, arguments):
    """The side in pixels of a square picture of a pipeline, by the arguments of a denoiser call of it."""
    shape = _shape_of(next(arguments[n] for n in SAMPLE_NAMES if n in arguments))
    tried = mean_latents(pipe.vae, torch.zeros(1, 3, TRIED, TRIED, device=pipe._execution_device, dtype=pipe.vae.dtype))
    side = shape[-1] if len(shape) > 3 else math.isqrt(shape[1]) * (1 if shape[2] == tried.shape[1] else 2)
    return side * TRIED // tried.shape[-1]
