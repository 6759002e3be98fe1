"""What `rotescope detect` lets a user choose."""
from dataclasses import dataclass
from typing import ClassVar

from rotescope.mitigate.contract.catalogue import check_text
from rotescope.mitigate.detectors.registry import DETECTORS
from rotescope.models.model_options import ModelOptions


@dataclass(frozen=True)
class DetectConfig(ModelOptions):
    HEADINGS: ClassVar = {"prompts": "prompts, detectors and output"}
    prompts: str
    """file of prompts, or a checkpoint's manifest.parquet"""
    output_dir: str
    """scores.parquet and run.json go here"""
    detector: tuple[str, ...] = ("magnitude",)
    """one or several, each perhaps with settings: magnitude:n=1,steps=5; all: every one that serves the model"""
    train_data: str | None = None
    """the training images, for recall; those of the prompts file unless given, if that is a manifest"""
    tokens: bool = False
    """also say how strongly each token triggers"""
    seed: int = 1000
    """first seed of each prompt; generate's default seeds are others, so that no detector sees the images that are judged"""
    groups: tuple[str, ...] = ("duplicated", "control")
    """which prompts of a manifest that has a duplication plan"""
    heldout_data: str | None = None
    """captioned data that the model never saw: as many of its captions as the largest group has, as the group heldout"""
    max_prompts: int | None = None
    """take only so many prompts of each group"""
    batch_size: int = 64
    """images at a time"""
    overwrite: bool = False
    """replace output_dir"""

    def check(self):
        super().check()
        for text in self.detector:
            if text != "all":
                check_text(text, DETECTORS, "detector")
