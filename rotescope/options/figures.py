"""What `rotescope figures` lets a user choose."""
from dataclasses import dataclass
from typing import ClassVar

from rotescope.mitigate.sampling.options import check_sampling
from rotescope.models.memory_options import MemoryOptions
from rotescope.models.model_options import check_model_name


@dataclass(frozen=True)
class FiguresConfig(MemoryOptions):
    HEADINGS: ClassVar = {"checkpoint": "data and output", "seeds": "sampling"}
    checkpoint: str
    """a fine-tuned model's folder, with its manifest.parquet"""
    output_dir: str
    """pictures, claims.json and samples go here"""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """one image a caption and a seed"""
    transitions: tuple[int, ...] = (950, 900, 850, 800, 750, 700, 600, 500, 400)
    """timesteps at which guidance is switched on, falling"""
    before: float = -2.0
    """the scale of opposite guidance"""
    guidance_scale: float | None = None
    """once it is on; unless given, as rotescope generate has it, or 4 where that is no guidance"""
    num_inference_steps: int = 25
    """denoising steps"""
    batch_size: int = 64
    """images at a time"""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1, …: where the model runs"""
    overwrite: bool = False
    """replace output_dir"""

    def check(self):
        super().check()
        check_sampling(self)
        check_model_name(self.checkpoint)
