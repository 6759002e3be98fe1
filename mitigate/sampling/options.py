"""What the commands of this layer let a user choose. Neither torch nor diffusers is imported here."""
import re
from dataclasses import dataclass
from typing import ClassVar

from rotescope.common.errors import InputError
from rotescope.common.options import check_seeds
from rotescope.mitigate.contract.catalogue import check_text, name_of
from rotescope.mitigate.methods.registry import ENTRIES, get_mitigation, with_training
from rotescope.mitigate.sampling.picture_size import parse_resolution
from rotescope.models.model_options import ModelOptions

MOST_GUIDANCE, MOST_STEPS = 1000, 1000  # no model has more timesteps, nor draws under more guidance


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(ModelOptions):
    """What every command that samples prompts lets a user choose alike."""
    HEADINGS: ClassVar = {"seeds": "sampling"}
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """one image a prompt and a seed; the same seed gives the same image in every batch"""
    guidance_scale: float | None = None
    """after the transition, as diffusers counts, where 1 is off and serves no mitigation; unless given 7.5 on Stable Diffusion 1,
    2, XL and 3 and on PixArt, and the pipeline's own default on others"""
    num_inference_steps: int = 50
    """of the pipeline's own scheduler"""
    resolution: str | None = None
    """size of the images in pixels: a side (512), width and height (832x1216), or buckets (each prompt in the shape of its own
    training picture; buckets:1024 names the side of their square); the model's own unless given"""
    negative_prompt: str = ""
    """what guidance leads away from, beside every prompt"""
    clip_skip: int | None = None
    """which layer of the text encoder conditions, as trainers count: 1 is the last, 2 the last but one; the LoRA header's unless
    given, else the model's own"""
    max_token_length: int | None = None
    """tokens of a caption that the model reads, in chunks as trainers read them: 75, 150 or 225; the LoRA header's unless given,
    else 75"""
    batch_size: int = 64
    """images at a time"""

    @property
    def sampling(self):
        """What the sampler is told beside prompts and seeds, but for the batch size, which changes no image."""
        return {"guidance_scale": self.guidance_scale, "num_inference_steps": self.num_inference_steps,
                "resolution": self.resolution, "negative_prompt": self.negative_prompt, "clip_skip": self.clip_skip,
                "max_token_length": self.max_token_length}

    def check(self):
        super().check()
        check_sampling(self)
        parse_resolution(self.resolution)


@dataclass(frozen=True)
class GenerateConfig(SamplingOptions):
    """Of rotescope generate."""
    HEADINGS: ClassVar = {"prompts": "prompts, mitigations and output"}
    prompts: str
    """file of prompts, or a checkpoint's manifest.parquet"""
    output_dir: str
    """where images, records.parquet and run.json go"""
    mitigation: tuple[str, ...] = ("none",)
    """one or several of what rotescope mitigations lists, each perhaps with settings: og-stp:before=-3,transition=700"""
    groups: tuple[str, ...] = ("duplicated", "control")
    """which prompts of a manifest that has a duplication plan"""
    max_prompts: int | None = None
    """take only so many prompts of each group"""
    overwrite: bool = False
    """replace output_dir"""
    resume: bool = False
    """go on with the run that was stopped, or start it; the settings must be the same"""

    def check(self):
        super().check()
        check_names(self.mitigation)
        check_number_of_prompts(self)


@dataclass(frozen=True)
class CalibrateConfig(ModelOptions):
    """Of rotescope calibrate."""
    HEADINGS: ClassVar = {"prompts": "prompts and output", "seeds": "sampling", "groups": "prompts and output"}
    prompts: str
    """file of ordinary prompts, or a checkpoint's manifest.parquet"""
    output_file: str
    """the calibration, a JSON file"""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """one image a prompt and a seed"""
    watch: int = 4
    """how many of the first steps are looked at"""
    guidance_scale: float | None = None
    """as it will be when sampling; unless given, as rotescope generate has it, or 4 where that is no guidance"""
    num_inference_steps: int = 50
    """as it will be when sampling"""
    batch_size: int = 64
    """images at a time"""
    groups: tuple[str, ...] = ("control",)
    """which prompts of a manifest that has a duplication plan"""
    max_prompts: int | None = None
    """take only so many prompts"""
    overwrite: bool = False
    """replace output_file"""

    def check(self):
        super().check()
        check_sampling(self)
        check_number_of_prompts(self)


def check_sampling(config):
    """InputError where guidance_scale, num_inference_steps, batch_size or seeds of a config cannot be sampled with. A scale of 1,
    which is off, serves plain sampling alone; None is the pipeline's own."""
    scale, plain = config.guidance_scale, set(getattr(config, "mitigation", ["?"])) == {"none"}
    if scale is not None and not (scale > 1 or scale == 1 and plain):
        raise InputError(f"guidance_scale={scale}: diffusers then sends one branch only; give a scale above 1"
                         + (" (or 1, which is off)" if plain else ""))
    if (scale or 0) > MOST_GUIDANCE or config.num_inference_steps > MOST_STEPS:
        raise InputError(f"guidance_scale={config.guidance_scale} and num_inference_steps={config.num_inference_steps}: take at "
                         f"most {MOST_GUIDANCE} and {MOST_STEPS}")
    if config.num_inference_steps < 1 or config.batch_size < 1 or not config.seeds:
        raise InputError("num_inference_steps and batch_size must be 1 or more, and there must be a seed")
    check_seeds(config.seeds)
    if len(set(config.seeds)) < len(config.seeds):
        raise InputError(f"a seed is named twice: {' '.join(map(str, config.seeds))}")


def check_number_of_prompts(config):
    """Raise InputError for a max_prompts that leaves no prompt."""
    if config.max_prompts is not None and config.max_prompts < 1:
        raise InputError(f"max_prompts={config.max_prompts}: take 1 prompt of each group or more")


def check_names(texts):
    """InputError for mitigations NAME[:key=value,…] of unknown names or keys, or named twice. Loads nothing."""
    for text in texts:
        check_text(text, ENTRIES, "mitigation")
    unique_names(texts, "mitigation")


def named_policies(mitigations, training=None):
    """Names, texts with settings, or objects -> {name for files: mitigation}.

    training: the training images, as with_training takes them, for those that need some and were given none.
    """
    texts = [m if isinstance(m, str) else name_of(m, ENTRIES) for m in mitigations]
    made = [get_mitigation(m) if training is None else with_training(m, training) for m in mitigations]
    return dict(zip(unique_names(texts, "mitigation"), made, strict=True))


def unique_names(texts, what):
    """NAME[:settings] -> names for files; one carries its settings only where two would share it.

    InputError for a repetition.
    """
    names = [text.partition(":")[0] for text in texts]
    unique = [name if names.count(name) == 1 else re.sub(r"[^\w.=+-]", "_", text)
              for text, name in zip(texts, names, strict=True)]
    if len(set(unique)) < len(unique):
        raise InputError(f"a {what} is named twice: {' '.join(texts)}")
    return unique
