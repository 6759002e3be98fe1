"""What `rotescope demo` lets a user choose."""
from dataclasses import dataclass

from rotescope.common.options import Options, check_steps
from rotescope.mitigate.sampling.options import check_names

METHODS = ("none", "stp:transition=600", "og-stp:transition=600", "og-stp-layout:transition=600", "dtp", "og-dtp")


@dataclass(frozen=True)
class DemoConfig(Options):
    output_dir: str = "runs/demo"
    """checkpoint, samples and report go here"""
    overwrite: bool = False
    """replace what an earlier demo left there"""
    max_train_steps: int | None = None
    """fine-tuning steps, if not the recipe's"""
    seed: int = 0
    """of the fine-tuning"""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """one image a caption and a seed"""
    num_inference_steps: int = 25
    """denoising steps"""
    mitigation: tuple[str, ...] = METHODS
    """methods to compare"""
    sweep: bool = True
    """also sweep the transition of delayed and of opposite guidance, on half of the seeds"""

    def check(self):
        super().check()
        check_names(self.mitigation)
        check_steps(self.max_train_steps)
