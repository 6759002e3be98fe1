"""The contract: what a mitigation may do around and inside one call of a pipeline. hooks.py brings it to diffusers.

A mitigation overrides what it needs: `prepare` (prompts, embeddings, initial noise), `attach` (attention, neurons), `survey`
(a run beforehand), `begin` (how the two predictions of a step are combined). Several can be chained; only one of them may combine
predictions. Each of the four is done by the whole chain before the next one is.
"""
import hashlib
import inspect
import re
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from rotescope.common.errors import InputError


@dataclass(frozen=True)
class Mitigation:
    """Does nothing. Subclasses are frozen dataclasses whose fields are the settings."""
    families: ClassVar[tuple[str, ...] | None] = None  # the pipelines that it can serve, of FAMILIES; None: all
    looks_inside: ClassVar[bool] = False  # does it call the UNet by itself, or edit its attention? It then sees the text alone

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


TIMESTEP, NOT_NEGATIVE, COUNT = (0, 1000), (0, inf), (1, inf)  # ranges of settings, ends included


def check_ranges(settings, **ranges):
    """InputError for a setting of these names that lies outside its (lowest, highest)."""
    for name, (low, high) in ranges.items():
        if not low <= (value := getattr(settings, name)) <= high:
            raise InputError(f"{name}={value}: give {f'a number from {low} to {high}' if isfinite(high) else f'{low} or more'}")


class GuidanceRun:
    """How a mitigation combines the predictions of one pipeline call, image by image."""
    transition_timesteps: Any = None  # float64 (n,), see no_transition
    call: Any = None  # the PipelineCall, known from before the first step on

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
    call: "PipelineCall | None"  # None under a guider, which sees no call
    denoise: object          # denoise(images=None, **changed arguments) -> the conditional half's output (n, …) once more: for
                             # the images, a bool (n,), one row each and zero for the others; None: for all


FAMILIES = {  # the head of a class's name
    "sdxl": "StableDiffusionXL", "sd3": "StableDiffusion3", "sd": "StableDiffusion", "pixart": "PixArt(Alpha|Sigma)",
    "flux": "Flux",
}
VARIANTS = "(ControlNet(Union)?|Adapter)?(Img2Img|Inpaint(ing)?|Depth2Img|Upscale)?Pipeline"  # and its tail


def family(pipe):
    """'sd', 'sdxl', 'sd3', 'pixart', 'flux', by the pipeline's class or one that it is derived from; or 'other'.

    The others are refused, see served.py.
    """
    names = [kind.__name__ for kind in type(pipe).__mro__]
    return next((kind for kind, head in FAMILIES.items() if any(re.fullmatch(head + VARIANTS, name) for name in names)), "other")


class PipelineCall:
    """The arguments of one pipe(...), which mitigations may change before it runs, and what it cost."""

    def __init__(self, pipe, arguments):
        self.pipe, self.arguments, self.family = pipe, dict(arguments), family(pipe)
        self._defaults = {name: p.default for name, p in inspect.signature(type(pipe).__call__).parameters.items()
                          if p.default is not p.empty}
        self._texts = None  # the prompts, once their embeddings have taken their place
        self.extra_rows = torch.zeros(self.n, dtype=torch.long)  # denoiser rows spent outside the loop
        self.memory = {}   # mitigation -> what its `prepare` found out and its run wants to know
        self.probe = None  # probe(mitigation) -> (hook, final latents): the same call under it, from the same noise

    def get(self, name, default=None):
        """An argument, or what the pipeline takes for it."""
        value = self.arguments.get(name)
        return self._defaults.get(name, default) if value is None else value

    @cached_property
    def n(self):
        """Images."""
        prompt, embeds = self.get("prompt"), self.get("prompt_embeds")
        prompts = 1 if isinstance(prompt, str) else len(prompt if prompt is not None else embeds)
        return prompts * self._per_prompt

    @property
    def guidance_scale(self):
        return self.get("true_cfg_scale" if self.family == "flux" else "guidance_scale")

    @property
    def device(self):
        return self.pipe._execution_device

    @property
    def _per_prompt(self):
        return self.get("num_images_per_prompt") or 1

    def _repeated(self, value):
        """An argument for each image: a string counts for all."""
        each = [value] * (self.n // self._per_prompt) if value is None or isinstance(value, str) else list(value)
        return [v for v in each for _ in range(self._per_prompt)]

    @property
    def prompts(self):
        """One an image. Raises InputError where the pipeline got embeddings instead."""
        if self._texts is None and self.get("prompt") is None:
            raise InputError("this mitigation reads the prompts: give the pipeline `prompt`, not `prompt_embeds`")
        return self._texts or self._repeated(self.get("prompt"))

    @prompts.setter
    def prompts(self, texts):
        if self._texts is not None:
            raise InputError("a mitigation that changes prompts must come before one that changes their embeddings")
        second = next((name for name in ("prompt_2", "prompt_3") if self.get(name) is not None), None)
        if second:
            raise InputError(f"a mitigation that changes prompts does not change {second}: give the pipeline `prompt` alone")
        self._expand()
        self.arguments["prompt"] = list(texts)

    def _expand(self):
        """One entry an image in whatever goes with the prompts, so that each image may go its own way."""
        if self._per_prompt > 1:
            prompts, negative = self.prompts, self.get("negative_prompt")
            negative = None if negative is None else self._repeated(negative)
            self.arguments |= {"prompt": prompts, "negative_prompt": negative, "num_images_per_prompt": 1}

    @cached_property
    def seeds(self):
        """One integer an image, from its generator; drawn where there is none."""
        generator = self.get("generator")
        if generator is None:
            return torch.randint(2 ** 62, (self.n,)).tolist()
        if isinstance(generator, torch.Generator):
            return [_number(generator.initial_seed(), i) for i in range(self.n)] if self.n > 1 else [generator.initial_seed()]
        return [g.initial_seed() for g in generator]

    def rng(self, i, salt=""):
        """numpy's generator for image i: its seed and its prompt decide, never its place in the batch."""
        return np.random.default_rng(_number(self.seeds[i], self.prompts[i], salt))

    @property
    def latents(self):
        """Initial noise (n, C, h, w) of unit variance, drawn as the pipeline would draw it."""
        if self.get("latents") is None:
            if self.family not in ("sd", "sdxl", "sd3", "pixart") or "latents" not in self._defaults or "image" in self._defaults:
                raise InputError(f"this mitigation changes the initial noise, which {type(self.pipe).__name__} does not take")
            denoiser, factor = denoiser_of(self.pipe), self.pipe.vae_scale_factor
            sides = [(self.get(side) or denoiser.config.sample_size * factor) // factor for side in ("height", "width")]
            self.arguments["latents"] = randn_tensor((self.n, denoiser.config.in_channels, *sides), self.get("generator"),
                                                     self.device, denoiser.dtype)
        return self.arguments["latents"]

    @latents.setter
    def latents(self, noise):
        self.arguments["latents"] = noise

    @property
    def embeddings(self):
        """Text embeddings (cond, uncond), each (n, tokens, width), as the pipeline would make them; Stable Diffusion only."""
        both = self.get("prompt_embeds"), self.get("negative_prompt_embeds")
        if both[0] is None:
            if self.family != "sd":
                raise InputError(f"this mitigation changes text embeddings, which is not served on {type(self.pipe).__name__}")
            self._expand()
            both = self.pipe.encode_prompt(self.prompts, self.device, 1, True, self.get("negative_prompt"),
                                           clip_skip=self.get("clip_skip"))
        elif self._per_prompt > 1:
            both = [e.repeat_interleave(self._per_prompt, 0) for e in both]
        self.embeddings = both
        return both

    @embeddings.setter
    def embeddings(self, both):
        """The prompts stay readable for `rng`, though the pipeline no longer gets them."""
        self._texts = self.prompts if self._texts or self.get("prompt") is not None else None
        self.arguments |= {"prompt": None, "negative_prompt": None, "num_images_per_prompt": 1,
                           "prompt_embeds": both[0], "negative_prompt_embeds": both[1]}


def denoiser_of(pipe):
    """The UNet or transformer of a pipeline; InputError where there is neither."""
    parts = (getattr(pipe, name, None) for name in ("unet", "transformer"))
    denoiser = next((part for part in parts if part is not None), None)  # a compiled one has no truth value
    if denoiser is None:
        raise InputError(f"{type(pipe).__name__} has neither a unet nor a transformer: there is nothing to mitigate")
    return denoiser


def guided(pipe, n, scale):
    """The arguments that ask a pipeline for n images under guidance by `scale`: FLUX names it otherwise than the rest."""
    return {"true_cfg_scale": scale, "negative_prompt": [""] * n} if family(pipe) == "flux" else {"guidance_scale": scale}


def _number(*parts):
    """Whatever was given -> one integer below 2⁶⁴, the same in every run."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")
