"""A pipeline's denoiser as a function of noise and timestep, plain guidance with it step by step, and its cross-attention.

The pipeline itself prepares everything (embeddings, noise, whatever else its denoiser is given): it is stopped at its first
denoiser call, and that call is kept.
"""
import copy
import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from rotescope.common.errors import InputError
from rotescope.datasets.images.to_pixels import to_pixels
from rotescope.mitigate.contract.families import denoiser_of, guidance_arguments, guidance_scale_of
from rotescope.mitigate.contract.mitigation import same_timestep
from rotescope.mitigate.contract.prediction import combine, noise_part, prediction_gap
from rotescope.models.prediction import eps_at
from rotescope.models.vae_latents import mean_latents


@dataclass(frozen=True)
class ProbeStep:
    """One step on the way, for n images."""
    timestep: torch.Tensor     # scalar
    x: torch.Tensor            # what the denoiser saw (n, C, h, w)
    eps_cond: torch.Tensor     # (n, C, h, w), at least fp32
    eps_uncond: torch.Tensor

    @property
    def gap(self):
        """Δ = eps_cond − eps_uncond (n, C, h, w)."""
        return self.eps_cond - self.eps_uncond

    @property
    def magnitude(self):
        """‖Δ‖₂ of each image (n,)."""
        return prediction_gap(self.eps_cond, self.eps_uncond)


class Probe:
    """The denoiser of `pipe` as a guided call of the pipeline for these texts would use it; one noise seed an image."""

    def __init__(self, pipe, texts, noise_seeds, num_inference_steps=50, guidance_scale=7.5):
        self.n, self.denoiser = len(texts), denoiser_of(pipe)
        self.guidance_scale: Any = guidance_scale_of(pipe, guidance_scale)
        self.generators = [torch.Generator().manual_seed(s) for s in noise_seeds]
        self.arguments = first_denoiser_call(pipe, prompt=list(texts), generator=self.generators,
                                             num_inference_steps=num_inference_steps,
                                             **guidance_arguments(pipe, self.n, guidance_scale))
        self.scheduler = copy.deepcopy(pipe.scheduler)
        self._sample = "hidden_states" if "hidden_states" in self.arguments else "sample"

    @property
    def noise(self):
        """What the denoiser sees first (n, C, h, w): noise of unit variance."""
        return self.arguments[self._sample][self.n:]

    @property
    def timesteps(self):
        """The distinct ones, in the order of sampling; a multi-call scheduler repeats some."""
        every = self.scheduler.timesteps.tolist()
        return [t for before, t in zip([torch.inf, *every], every, strict=False) if not same_timestep(before, t)]

    def outputs(self, x, timestep, **changed):
        """Denoiser on x (n, C, h, w) -> (cond, uncond), in the unit of its output; `changed` replaces arguments of the call."""
        both = torch.cat([x, x])
        ours = {self._sample: both, "timestep": torch.full_like(self.arguments["timestep"], timestep)}
        out = noise_part(self.denoiser(**{**self.arguments, "return_dict": False, **ours, **changed})[0], both)
        return tuple(reversed(out.chunk(2)))

    def eps(self, x, timestep, **changed):
        """The same in ε, at least fp32."""
        return tuple(eps_at(self.scheduler, out, x, timestep) for out in self.outputs(x, timestep, **changed))

    def walk(self, steps=None):
        """Plain guidance from the noise on: yields a ProbeStep at each of the first `steps` distinct timesteps (None: all)."""
        scheduler, seen, wanted = copy.deepcopy(self.scheduler), torch.inf, self.timesteps[:steps]
        extra = {"generator": self.generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        x = self.noise / scheduler.scale_model_input(torch.ones_like(self.noise), scheduler.timesteps[0])  # undo it: it is linear
        scale = torch.full((self.n,), float(self.guidance_scale), device=x.device)
        for t in scheduler.timesteps:
            if not any(same_timestep(t.item(), w) for w in wanted):
                return
            x_in = scheduler.scale_model_input(x, t)
            cond, uncond = self.outputs(x_in, t)
            if not same_timestep(t.item(), seen):
                yield ProbeStep(t, x_in, *(eps_at(scheduler, out, x_in, t) for out in (cond, uncond)))
            x, seen = scheduler.step(combine(cond, uncond, scale), t, x, **extra).prev_sample, t.item()


@torch.no_grad()
def image_latents(pipe, images, side=None):
    """n RGB images -> (n, C, h, w): the middle of what the VAE makes of them at this side in pixels, as training sees them.

    side: the model's own, by its denoiser's configuration, unless given.

    InputError where the VAE overflows in half precision.
    """
    side, vae = side or denoiser_of(pipe).config.sample_size * pipe.vae_scale_factor, pipe.vae
    pixels = torch.stack([to_pixels(image, side) for image in images]).to(pipe._execution_device, vae.dtype)
    latents = mean_latents(vae, pixels)
    if not latents.isfinite().all():
        raise InputError(f"the VAE overflows in {str(vae.dtype).removeprefix('torch.')}: pass --dtype fp32, or give the model a "
                         "VAE that is made for half precision")
    return latents


class _Reached(Exception):
    """Carries the arguments of the denoiser's first call out of the pipeline."""


def first_denoiser_call(pipe, **arguments):
    """Run the pipeline up to its first denoiser call -> the arguments of that call, by name."""
    def stop(module, args, kwargs):
        raise _Reached(dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments))
    pipe.set_progress_bar_config(disable=True)
    handle = denoiser_of(pipe).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        pipe(**arguments)
    except _Reached as reached:
        return reached.args[0]
    finally:
        handle.remove()
    raise RuntimeError(f"{type(pipe).__name__} never called its denoiser")


@contextmanager
def cross_attention(probe, keep):
    """Inside, each cross-attention layer of the UNet adds keep(layer's name, probabilities) to the list that this yields.

    The probabilities (n, heads, pixels, tokens) are those of the conditional half, softmax(qkᵀ/√d) over the tokens; the layers
    come in the order of their use, and what they give is left as it is.
    """
    kept = []

    def watch(name):
        def look(attn, args, kwargs):
            hidden, text = args[0][-probe.n:], kwargs["encoder_hidden_states"][-probe.n:]
            query, key = attn.head_to_batch_dim(attn.to_q(hidden)), attn.head_to_batch_dim(attn.to_k(text))
            kept.append(keep(name, attn.get_attention_scores(query, key).unflatten(0, (probe.n, attn.heads))))
        return look

    handles = [module.register_forward_pre_hook(watch(name), with_kwargs=True)
               for name, module in probe.denoiser.named_modules() if name.endswith(".attn2")]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
