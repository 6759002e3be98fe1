"""What every command that samples prompts lets a user choose alike."""
import re
from dataclasses import dataclass

from rotescope.common.errors import InputError
from rotescope.common.model_options import ModelOptions
from rotescope.mitigate.methods.registry import get_mitigation


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(ModelOptions):
    """What every command that samples prompts lets a user choose alike."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """one image a prompt and a seed; the same seed gives the same image in every batch"""
    guidance_scale: float = 7.5
    """after the transition; 1 is off, as in diffusers"""
    num_inference_steps: int = 50
    """of the pipeline's own scheduler"""
    resolution: int | None = None
    """side of the images in pixels; the model's own unless given"""
    batch_size: int = 64
    """images at a time"""

    @property
    def sampling(self):
        """What the sampler is to be told beside prompts and seeds, but for the batch size, which changes no image."""
        return {"guidance_scale": self.guidance_scale, "num_inference_steps": self.num_inference_steps,
                "resolution": self.resolution}


def check_sampling(config):
    """Raise InputError where guidance_scale, num_inference_steps, batch_size or seeds of any config cannot be sampled with."""
    if config.guidance_scale <= 1:
        raise InputError(f"guidance_scale={config.guidance_scale}: diffusers then sends one branch only; give a scale above 1")
    if config.num_inference_steps < 1 or config.batch_size < 1 or not config.seeds:
        raise InputError("num_inference_steps and batch_size must be 1 or more, and there must be a seed")
    if len(set(config.seeds)) < len(config.seeds):
        raise InputError(f"a seed is named twice: {' '.join(map(str, config.seeds))}")


def named_policies(texts):
    """-> {name: policy}."""
    return dict(zip(unique_names(texts, "mitigation"), map(get_mitigation, texts), strict=True))


def unique_names(texts, what):
    """NAME[:settings] -> names for files; one carries its settings only where two would share it. InputError for a repetition."""
    names = [text.partition(":")[0] for text in texts]
    unique = [name if names.count(name) == 1 else re.sub(r"[^\w.=+-]", "_", text)
              for text, name in zip(texts, names, strict=True)]
    if len(set(unique)) < len(unique):
        raise InputError(f"a {what} is named twice: {' '.join(texts)}")
    return unique
