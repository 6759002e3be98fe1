"""What rotescope inspect lets a user choose."""
from dataclasses import dataclass
from typing import ClassVar

from rotescope.datasets.trainers.data_options import DataOptions


@dataclass(frozen=True, kw_only=True)
class InspectConfig(DataOptions):
    """Of rotescope inspect."""
    HEADINGS: ClassVar = {"paths": "what is looked at"}
    paths: tuple[str, ...]
    """files and folders: models, LoRAs, embeddings, training data; of a LoRA and data together it is said whether they agree"""
    json: bool = False
    """as JSON"""
