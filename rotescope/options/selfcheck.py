"""What `rotescope selfcheck` lets a user choose."""
from dataclasses import dataclass
from typing import ClassVar

from rotescope.common.errors import InputError
from rotescope.mitigate.sampling.picture_size import parse_resolution
from rotescope.models.model_options import ModelOptions


@dataclass(frozen=True, kw_only=True)
class SelfcheckConfig(ModelOptions):
    """Of rotescope selfcheck."""
    HEADINGS: ClassVar = {"num_inference_steps": "sampling"}
    num_inference_steps: int = 4
    """of each of the six calls; the pictures need not be good"""
    guidance_scale: float | None = None
    """above 1; the family's own unless given, or 4 where that is off"""
    resolution: str | None = None
    """a side in pixels, or width and height (832x1216); the model's own unless given"""

    def check(self):
        super().check()
        parse_resolution(self.resolution)
        if not 4 <= self.num_inference_steps <= 1000:
            raise InputError(f"num_inference_steps={self.num_inference_steps}: take 4 to 1000, so that a transition lies between")
        if self.guidance_scale is not None and not 1 < self.guidance_scale <= 1000:
            raise InputError(f"guidance_scale={self.guidance_scale}: take more than 1, and at most 1000")
