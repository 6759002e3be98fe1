"""What `rotescope retrigger` lets a user choose."""
from dataclasses import dataclass
from typing import ClassVar

from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.evaluate.options import CopyRule
from rotescope.mitigate.sampling.options import SamplingOptions, check_names


@dataclass(frozen=True, kw_only=True)
class RetriggerConfig(DataOptions, SamplingOptions, CopyRule):
    HEADINGS: ClassVar = {"train_data": "data and output", "mitigation": "which images, under which mitigations",
                          "search_steps": "the search for embeddings"}
    train_data: str
    """the training images with their captions; the manifest.parquet beside a fine-tuned checkpoint knows which were duplicated"""
    output_dir: str
    """retrigger.json, pictures, embeddings.safetensors and samples go here"""
    heldout_data: str | None = None
    """pictures with captions that the model never saw, searched for at the same budget: without them nothing is proved"""
    mitigation: tuple[str, ...] = ("og-stp",)
    """names as rotescope mitigations lists them, perhaps with settings; sampling without one is always beside them"""
    image_ids: tuple[str, ...] = ()
    """the images to bring back, as the manifest or an audit names them; else the first of each group"""
    groups: tuple[str, ...] = ("duplicated", "control")
    """which images of a manifest that has a duplication plan"""
    max_images: int = 8
    """of each group, and of the held-out pictures"""
    max_texts: int = 4
    """captions, and as many paraphrases, of each image"""
    search_steps: int = 50
    """of a search; the paper's, after which few ordinary images come back"""
    search_rate: float = 0.1
    """learning rate of a search"""
    search_draws: int = 8
    """timesteps and noises in each of its steps"""
    search_starts: tuple[str, ...] = ("caption", "empty")
    """what its embedding is at first: that of the caption, or of the empty text"""
    search_seeds: tuple[int, ...] = (0,)
    """one search an image, a start and a seed"""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """one image a caption, paraphrase or found embedding, and a seed"""
    batch_size: int = 64
    """images at a time; a search takes search_draws of them"""
    overwrite: bool = False
    """replace output_dir"""

    def check(self):
        super().check()
        check_names(self.mitigation)
