"""What `rotescope compare` lets a user choose."""
from dataclasses import dataclass
from typing import ClassVar

from rotescope.mitigate.sampling.options import check_names, check_sampling
from rotescope.models.memory_options import MemoryOptions
from rotescope.models.model_options import check_model_name


@dataclass(frozen=True)
class CompareConfig(MemoryOptions):
    HEADINGS: ClassVar = {"checkpoint": "data and output", "mitigation": "what is compared", "seeds": "sampling"}
    checkpoint: str
    """a fine-tuned model's folder, with its manifest.parquet"""
    output_dir: str
    """samples, table and picture go here"""
    mitigation: tuple[str, ...] = ()
    """names as rotescope mitigations lists them, perhaps with settings; all that serve the model, unless given"""
    heldout_data: str | None = "auto"
    """pictures that the model never saw, for fidelity; auto: the embedded ones where the checkpoint was fine-tuned on
    embedded pictures, else none"""
    seeds: tuple[int, ...] = (0, 1)
    """one image a caption and a seed"""
    guidance_scale: float | None = None
    """of plain guidance; unless given, as rotescope generate has it, or 4 where that is no guidance"""
    num_inference_steps: int = 25
    """denoising steps"""
    batch_size: int = 48
    """images at a time"""
    repeats: int = 3
    """timed pairs of plain guidance and the method, on one batch"""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1, …: where the model runs"""
    overwrite: bool = False
    """replace output_dir"""

    def check(self):
        super().check()
        check_sampling(self)
        check_names(self.mitigation)
        check_model_name(self.checkpoint)
