"""The copy rate as a metric for a training loop."""
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchmetrics import Metric

from rotescope.common.errors import InputError
from rotescope.evaluate.inputs.pictures_in_memory import data_of
from rotescope.evaluate.inputs.training_and_heldout import apart
from rotescope.evaluate.measurement.layers import check_measuring, make_layers
from rotescope.evaluate.options import CopyRule
from rotescope.evaluate.statistics.clusters import clustered_share
from rotescope.evaluate.statistics.estimate import Estimate

WANTED = "pass a list of PIL images, or a tensor (n, 3, height, width), uint8 or float from 0 to 1"


class CopyRate(Metric):
    """Share of generated images that copy a training image as a whole, as `score` with ``verify=False`` counts it.

    Parameters
    ----------
    reference : str, Path, Manifest or list of PIL images
        The training images, two or more.
    heldout : the same, optional
        Pictures that the model never saw.
    descriptor, exact, copy_null, copy_quantile, copy_threshold, index_dir
        As for `score`. ``descriptor="auto"`` is chosen by the first images that are seen.
    **kwargs
        Of torchmetrics.Metric.

    Attributes
    ----------
    similarity : list of tensors (n,)
        To the nearest training image.
    copied : list of tensors (n,) uint8, 1 for a copy
    prompt : list of tensors (n,) int64
        Which prompt each image belongs to, as a number; -1 where that is unknown.

    Raises
    ------
    InputError
        If there are no training images, or the options do not fit.

    Examples
    --------
    >>> metric = CopyRate(reference="photos")
    >>> metric.update(images, prompts=["a cat", "a dog"])
    >>> value, low, high, n_images, _ = metric.compute()
    >>> n_images, low <= value <= high
    (2, True)
    """
    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    similarity: list[torch.Tensor]
    copied: list[torch.Tensor]
    prompt: list[torch.Tensor]

    def __init__(self, reference: Any, *, heldout: Any = None, descriptor: str = "auto", exact: str = "pixels",
                 copy_null: str = "train",
                 copy_quantile: float = 0.999, copy_threshold: float | None = None,
                 index_dir: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        training, held, _ = data_of(reference, heldout)
        self._data = training, apart(held, training)[0]
        self._how = CopyRule(descriptor=descriptor, exact=exact, copy_null=copy_null,
                             copy_quantile=copy_quantile,
                             copy_threshold=copy_threshold, index_dir=index_dir)
        check_measuring(self._how, *self._data, None)
        self._layers: dict = {}
        self.add_state("similarity", default=[], dist_reduce_fx="cat")
        self.add_state("copied", default=[], dist_reduce_fx="cat")
        self.add_state("prompt", default=[], dist_reduce_fx="cat")

    def update(self, images: list[Image.Image] | torch.Tensor, prompts: Sequence[str] | None = None) -> None:
        """Compare images with the training images.

        Parameters
        ----------
        images : list of PIL images, or tensor (n, 3, height, width)
            uint8 from 0 to 255, or float from 0 to 1.
        prompts : sequence of str (n,), optional
            What each was made from: the interval takes the images of one prompt together, since they are alike.

        Raises
        ------
        InputError
            If images or prompts cannot be used.
        """
        pictures = _pictures(images)
        if prompts is not None and len(prompts) != len(pictures):
            raise InputError(f"there are {len(pictures)} images and {len(prompts)} prompts: pass one prompt for each image")
        if not pictures:
            return
        if not self._layers:
            side = min(min(picture.size) for picture in pictures)
            self._layers = make_layers(side, *self._data, None, self._how)
        found = {}
        for name, layer in self._layers.items():
            similarity, _ = layer.index.nearest(layer.index.descriptor(pictures))
            found[name] = torch.from_numpy(np.asarray(similarity, np.float32))
        copied = torch.stack([found[name] >= layer.threshold for name, layer in self._layers.items()]).any(0)
        self.similarity.append(found["descriptor"].to(self.device))
        self.copied.append(copied.to(self.device, torch.uint8))
        numbers = [-1] * len(pictures) if prompts is None else [_number_of(text) for text in prompts]
        self.prompt.append(torch.tensor(numbers, dtype=torch.int64, device=self.device))

    def compute(self) -> Estimate:
        """The share of all images so far, in all processes, that copy.

        Returns
        -------
        Estimate
            Value, ends of the 95% interval that takes prompts as clusters, numbers of images and of prompts;
            an image without one counts as a prompt of its own.

        Raises
        ------
        InputError
            If no image was seen.
        """
        copied, prompt = (_joined(parts) for parts in (self.copied, self.prompt))
        if not len(copied):
            raise InputError("no image was given to CopyRate: call update first")
        alone = -1 - np.arange(len(prompt))
        return clustered_share(copied, np.where(prompt < 0, alone, prompt))


def _joined(state):
    """A state of the metric, a list until processes have met -> array (n,)."""
    parts = state if isinstance(state, list) else [state]
    return torch.cat(parts).cpu().numpy() if parts else np.zeros(0)


def _number_of(text):
    """A prompt -> a number from 0 to 2^63 − 1, the same in every process."""
    return int.from_bytes(hashlib.sha256(str(text).encode("utf-8", "surrogateescape")).digest()[:8], "big") >> 1


def _pictures(images):
    """-> list of RGB PIL images."""
    if not isinstance(images, torch.Tensor):
        pictures = list(images)
        wrong = next((one for one in pictures if not isinstance(one, Image.Image)), None)
        if wrong is not None:
            raise InputError(f"a {type(wrong).__name__} is no image: {WANTED}")
        return [one.convert("RGB") for one in pictures]
    if images.dim() != 4 or images.shape[1] != 3:
        raise InputError(f"a tensor of shape {tuple(images.shape)} is no batch of images: {WANTED}")
    if images.dtype != torch.uint8:
        if not images.is_floating_point() or len(images) and not (images.min() >= 0 and images.max() <= 1):
            raise InputError(f"the pixels are {images.dtype} and not all from 0 to 1: {WANTED}")
        images = (images.double() * 255).round().to(torch.uint8)
    return [Image.fromarray(pixels) for pixels in images.permute(0, 2, 3, 1).cpu().contiguous().numpy()]
