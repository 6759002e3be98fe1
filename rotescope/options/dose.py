"""What `rotescope dose` lets a user choose."""
from dataclasses import dataclass
from typing import ClassVar

from rotescope.common.options import check_steps
from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.mitigate.sampling.options import check_names, check_sampling
from rotescope.models.memory_options import MemoryOptions
from rotescope.models.model_options import check_model_name
from rotescope.train.options.finetune_options import EMBEDDED


@dataclass(frozen=True)
class DoseConfig(DataOptions, MemoryOptions):
    HEADINGS: ClassVar = {"output_dir": "model, data and output", "doses": "the doses", "mitigation": "mitigations",
                          "seeds": "sampling and measuring"}
    output_dir: str = "runs/dose"
    """dose.json, dose.png, dose.md, checkpoints and samples go here"""
    pretrained_model_name_or_path: str = str(EMBEDDED["pretrained_model_name_or_path"])
    """folder of a Stable Diffusion 1 or 2 model in diffusers' layout, or its name on the hub"""
    train_data: str = str(EMBEDDED["train_data"])
    """captioned images, as rotescope finetune takes them"""
    recipe: str | None = None
    """YAML of rotescope finetune that says how to train; the demo's for the embedded model and data, else finetune's defaults"""
    max_train_steps: int | None = None
    """fine-tuning steps, if not the recipe's"""
    doses: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """copies of a canary in an epoch"""
    images: int = 4
    """canaries at each dose, and as many controls"""
    train_seeds: tuple[int, ...] = (0, 1, 2)
    """one fine-tune each, with canaries of its own"""
    mitigation: tuple[str, ...] = ("none",)
    """sample the plain fine-tunes under these, named as for rotescope generate: a curve each"""
    train_mitigation: tuple[str, ...] = ()
    """more fine-tunes, a curve each: caption perturbations by name, rand_noise_lam, mixup_noise_lam, hard_threshold, mem_ratio,
    each perhaps with =VALUE; several_captions; deduplication"""
    seeds: tuple[int, ...] = (0, 1)
    """one image a caption and a seed"""
    guidance_scale: float = 7.5
    """while sampling"""
    num_inference_steps: int = 25
    """denoising steps"""
    batch_size: int = 64
    """images at a time"""
    descriptor: str = "auto"
    """how copies are told, as in rotescope score"""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1, …: where the model samples"""
    overwrite: bool = False
    """replace output_dir"""
    resume: bool = False
    """go on with the run that was stopped, or start it; the settings must be the same"""

    def check(self):
        super().check()
        check_sampling(self)
        check_names(self.mitigation)
        check_steps(self.max_train_steps)
        check_model_name(self.pretrained_model_name_or_path)
