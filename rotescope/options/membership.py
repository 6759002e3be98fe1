"""What `rotescope membership` lets a user choose."""
from dataclasses import dataclass
from typing import ClassVar

from rotescope.common.errors import InputError
from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.models.model_options import ModelOptions

FEWEST_IMAGES = 8   # of each kind, as evaluate/statistics/set_inference.py wants them


@dataclass(frozen=True, kw_only=True)
class MembershipConfig(DataOptions, ModelOptions):
    HEADINGS: ClassVar = {"train_data": "data and output", "noises": "the signals"}
    train_data: str
    """the set in question, with captions: was the model trained on it?"""
    heldout_data: str
    """captioned pictures of the same kind that the model cannot have been trained on; those that are in the set are left out"""
    output_dir: str
    """membership.json and signals.parquet go here"""
    noises: int = 4
    """noises at each of the five timesteps, the same for all pictures"""
    max_images: int = 100
    """of each, evenly spread over the data"""
    seed: int = 1000
    """of the noises, and of the halves that pictures are split into"""
    batch_size: int = 64
    """pictures at a time"""
    overwrite: bool = False
    """replace output_dir"""

    def check(self):
        super().check()
        if self.noises < 1 or self.batch_size < 1:
            raise InputError(f"noises={self.noises}, batch_size={self.batch_size}: both must be 1 or more")
        if self.max_images < FEWEST_IMAGES:
            raise InputError(f"max_images={self.max_images}: give {FEWEST_IMAGES} or more, fewer of each cannot tell")
