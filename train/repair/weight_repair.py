"""What a way of repairing a LoRA is: update -> update, what it needs, what it costs."""
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch

from rotescope.common.errors import InputError
from rotescope.datasets.manifest import Manifest
from rotescope.models.adapters.adapter_file import AdapterFile
from rotescope.models.adapters.low_rank import Channels, LowRankUpdate, channels_of, low_rank_of
from rotescope.models.lora import place_updates
from rotescope.train.repair.attached_updates import AttachedUpdates, base_weights

Updates = dict[str, LowRankUpdate]  # by the layers' names in the file


@dataclass(frozen=True, eq=False)
class RepairContext:
    """What a way may look at.

    Attributes
    ----------
    pipe : DiffusionPipeline
        The base, with nothing attached before `attached` is asked for.
    found : AdapterFile
        The LoRA.
    leaking, others : Manifest, optional
        Training pictures that the LoRA gives back, and captioned pictures that it is to serve as before; None without data.
    resolution : int
        Side, in pixels, of the squares that it was trained on.
    batch_size, seed : int
        Of what is drawn.
    memory : dict
        Where a way keeps what it asks once.
    """
    pipe: Any
    found: AdapterFile
    leaking: Manifest | None = None
    others: Manifest | None = None
    resolution: int = 512
    batch_size: int = 4
    seed: int = 0
    memory: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def updates(self) -> Updates:
        """Of the LoRA as it is."""
        return {update.name: low_rank_of(update) for update in self.found.updates}

    @cached_property
    def channels(self) -> dict[str, Channels]:
        """Of the updates that are matrices."""
        return {name: channels_of(update) for name, update in self.updates.items() if update.is_matrix}

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """The base's weights, (out, n), of the layers that have channels and belong to the pipeline."""
        return base_weights(place_updates(self.pipe, self.found), self.updates)

    @cached_property
    def attached(self) -> AttachedUpdates:
        """The LoRA on the pipeline, so that gradients reach it. InputError if there are no data, or the family is not trained."""
        if self.leaking is None or self.others is None:
            raise InputError("this way needs the training data: name them with --train_data")
        _ = self.weights, self.channels  # of the base as it is, before a DoRA is added to its weights
        return AttachedUpdates(self.pipe, self.found, self.updates, (self.leaking, self.others), self.resolution)


class WeightRepair(ABC):
    """A way. It is tried at several doses, from the mildest on; what a dose is, each says."""
    name: ClassVar[str]
    needs_data: ClassVar[bool]
    cost: ClassVar[str]       # in words, beside an audit for each dose
    dose_name: ClassVar[str]
    identity: ClassVar[float] = 0  # the dose that changes nothing
    doses: tuple[float, ...]

    @abstractmethod
    def update(self, context: RepairContext, dose: float) -> Updates:
        """-> the repaired updates, by the same names; the very same object where a layer is left as it is."""

    def check(self) -> None:
        """InputError for doses that it cannot have."""
        if not self.doses or not all(0 <= dose <= 1 for dose in self.doses):
            raise InputError(f"{self.name}: the doses {' '.join(f'{d:g}' for d in self.doses)} must be shares from 0 to 1")
