"""The arguments of one pipe(...), which mitigations may change before it runs, and what it cost."""
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from rotescope.common.errors import InputError
from rotescope.mitigate.contract.families import FAMILIES, GuidedFamily, call_parameters, denoiser_of, family
from rotescope.models.seeds import hashed_integer


class PipelineCall:
    """One call of a pipeline. Only its methods change it: reading an attribute draws and encodes nothing.

    Attributes
    ----------
    arguments : dict
        What the pipeline will be given.
    n : int
        Images that the call makes.
    latents : torch.Tensor or None
        Initial noise (n, C, h, w) of unit variance; None until it is given, drawn or set.
    embeddings : tuple of torch.Tensor, or None
        Text embeddings (cond, uncond), each (n, tokens, width); None until they are encoded or set.
    seeds : list of int, or None
        One an image; None until `draw_seeds`.
    extra_rows : torch.Tensor
        Denoiser rows (n,) that were spent outside the sampling loop.
    changed : torch.Tensor
        Images (n,) bool whose prompt, embedding, noise or network a mitigation changed.
    memory : dict
        mitigation -> what its `prepare` found out and its run wants to know.
    probe : function or None
        probe(mitigation) -> (hook, final latents): the same call under it, from the same noise.
    """

    def __init__(self, pipe, arguments):
        self.pipe, self.arguments, self.family = pipe, dict(arguments), family(pipe)
        self.row: GuidedFamily | None = FAMILIES.get(self.family)   # None: of no family that is known
        self._defaults = {name: p.default for name, p in call_parameters(type(pipe)).items() if p.default is not p.empty}
        self._texts = None  # the prompts, once their embeddings have taken their place
        self.n = self._prompts_given() * self._per_prompt
        self.latents, self.embeddings, self.seeds = self.get("latents"), None, None
        self.extra_rows = torch.zeros(self.n, dtype=torch.long)
        self.changed = torch.zeros(self.n, dtype=torch.bool)
        self.memory: dict[Any, Any] = {}
        self.probe: Any = None

    def get(self, name, default=None):
        """An argument, or what the pipeline takes for it."""
        value = self.arguments.get(name)
        return self._defaults.get(name, default) if value is None else value

    @property
    def guidance_scale(self):
        """As the call has it, 1 for none, whatever its pipeline calls it."""
        return self.row.scale_of(self.get(self.row.scale)) if self.row else self.get("guidance_scale")

    @property
    def guided(self):
        """Whether the pipeline computes both branches for this call, as far as its arguments say."""
        asked = not (self.row and self.row.negative == "needed") or any(
            self.get(name) is not None for name in ("negative_prompt", "negative_prompt_embeds"))
        return bool(self.guidance_scale and self.guidance_scale > 1 and asked and not self.pipe.config.get("is_distilled"))

    @property
    def device(self):
        """Where the pipeline runs."""
        return self.pipe._execution_device

    def _prompts_given(self):
        prompt, embeds = self.get("prompt"), self.get("prompt_embeds")
        return 1 if isinstance(prompt, str) else len(prompt if prompt is not None else embeds)

    @property
    def _per_prompt(self):
        return self.get("num_images_per_prompt") or 1

    # ----- prompts

    @property
    def prompts(self):
        """One an image. Raises InputError where the pipeline got embeddings instead."""
        if self._texts is None and self.get("prompt") is None:
            raise InputError("this mitigation reads the prompts: give the pipeline `prompt`, not "
                             "`prompt_embeds`")
        return self._texts or self._repeated(self.get("prompt"))

    def replace_prompts(self, texts):
        """Give the pipeline n other prompts, one an image. InputError once they are embedded."""
        if self._texts is not None:
            raise InputError("a mitigation that changes prompts must come before one that changes their "
                             "embeddings")
        second = next((name for name in ("prompt_2", "prompt_3") if self.get(name) is not None), None)
        if second:
            raise InputError(f"a mitigation that changes prompts does not change {second}: give the pipeline "
                             "`prompt` alone")
        self.note_change([new != old for new, old in zip(texts, self.prompts, strict=True)])
        self._expand()
        self.arguments["prompt"] = list(texts)

    def note_change(self, which):
        """Images (n,) bool that this call will make otherwise than a plain one, as far as it is known before."""
        self.changed = self.changed | torch.as_tensor(which, dtype=torch.bool).cpu()

    def _repeated(self, value):
        """An argument for each image: a string counts for all."""
        one = value is None or isinstance(value, str)
        each = [value] * (self.n // self._per_prompt) if one else list(value)
        return [v for v in each for _ in range(self._per_prompt)]

    def _expand(self):
        """One entry an image in whatever goes with the prompts, so that each image may go its own way."""
        if self._per_prompt > 1:
            prompts, negative = self.prompts, self.get("negative_prompt")
            negative = None if negative is None else self._repeated(negative)
            self.arguments |= {"prompt": prompts, "negative_prompt": negative, "num_images_per_prompt": 1}

    # ----- seeds

    def draw_seeds(self):
        """-> `seeds`: those of the generators; drawn at the first call where there is no generator."""
        if self.seeds is None:
            self.seeds = _seeds_of(self.get("generator"), self.n)
        return self.seeds

    def rng(self, i, salt=""):
        """numpy's generator for image i: its seed and its prompt decide, never its place in the batch."""
        return np.random.default_rng(hashed_integer(repr((self.draw_seeds()[i], self.prompts[i], salt))))

    # ----- initial noise

    def draw_noise(self):
        """-> `latents`, drawn at the first call as the pipeline does. InputError where it takes none."""
        if self.latents is None:
            self._check_noise()
            denoiser, factor = denoiser_of(self.pipe), self.pipe.vae_scale_factor
            own = denoiser.config.sample_size * factor
            sides = [(self.get(side) or own) // factor for side in ("height", "width")]
            shape = self.n, denoiser.config.in_channels, *sides
            self._give_noise(randn_tensor(shape, self.get("generator"), self.device, denoiser.dtype))
        return self.latents

    def _check_noise(self):
        """InputError where the pipeline takes no noise, or is guided by a picture, of which the denoiser alone does not know."""
        name = type(self.pipe).__name__
        if any(getattr(self.pipe, part, None) is not None for part in ("controlnet", "adapter")):
            raise InputError("this mitigation asks the denoiser before sampling, which would know nothing of the picture that "
                             f"guides {name}: take one of the guidance alone, such as og-stp")
        if not (self.row and self.row.noise) or "latents" not in self._defaults or "image" in self._defaults:
            raise InputError(f"this mitigation changes the initial noise, which {name} does not take")

    def replace_noise(self, noise):
        """Give the pipeline this initial noise (n, C, h, w) of unit variance."""
        self.note_change(_another(noise, self.latents))
        self._give_noise(noise)

    def _give_noise(self, noise):
        self.latents = self.arguments["latents"] = noise

    # ----- text embeddings

    def encode_text(self):
        """-> `embeddings`, encoded at the first call as the pipeline does; Stable Diffusion 1 and 2 only."""
        if self.embeddings is None:
            given = [self.get(name) for name in ("prompt_embeds", "negative_prompt_embeds")]
            both = [e if e is None else e.repeat_interleave(self._per_prompt, 0) for e in given]
            lacking = any(e is None for e in both)
            self._give_embeddings(*(self._encoded(*both) if lacking else both))
        return self.embeddings

    def _encoded(self, cond, uncond):
        """Those of the two that are not given."""
        if self.family != "sd":
            raise InputError("this mitigation changes text embeddings, which is not served on "
                             f"{type(self.pipe).__name__}")
        texts = self.prompts if cond is None else None
        negative = self.get("negative_prompt") if uncond is None else None
        negative = None if negative is None else self._repeated(negative)
        return self.pipe.encode_prompt(texts, self.device, 1, True, negative, prompt_embeds=cond, negative_prompt_embeds=uncond,
                                       clip_skip=self.get("clip_skip"))

    def replace_embeddings(self, cond, uncond):
        """Give the pipeline text embeddings (n, tokens, width) instead of the prompts; `rng` can still read these."""
        for new, old in zip((cond, uncond), self.embeddings or (None, None), strict=True):
            self.note_change(_another(new, old))
        self._give_embeddings(cond, uncond)

    def _give_embeddings(self, cond, uncond):
        self._texts = self.prompts if self._texts or self.get("prompt") is not None else None
        self.embeddings = cond, uncond
        self.arguments |= {"prompt": None, "negative_prompt": None, "num_images_per_prompt": 1,
                           "prompt_embeds": cond, "negative_prompt_embeds": uncond}


def _another(new, old):
    """Which of n tensors (n, …) are not the old ones -> bool (n,); all, where the old ones are not known."""
    return torch.ones(len(new), dtype=torch.bool) if old is None else (new != old.to(new)).flatten(1).any(1)


def _seeds_of(generator, n):
    """None, a generator for all, or one an image -> n integers."""
    if generator is None:
        return torch.randint(2 ** 62, (n,)).tolist()
    if isinstance(generator, torch.Generator):
        seed = generator.initial_seed()
        return [hashed_integer(repr((seed, i))) for i in range(n)] if n > 1 else [seed]
    return [g.initial_seed() for g in generator]
