"""A LoRA beside the layers of its base, so that the denoising loss of pictures has a gradient in it."""
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from rotescope.common.errors import InputError
from rotescope.datasets.manifest import Manifest
from rotescope.models.adapters.adapter_file import AdapterFile
from rotescope.models.adapters.attachment import SIDE_BY_SIDE, attach
from rotescope.models.adapters.layer_index import PipelineLayer, layer_shape
from rotescope.models.adapters.layer_updates import LayerUpdate
from rotescope.models.adapters.low_rank import LowRankUpdate
from rotescope.models.lora import place_updates
from rotescope.models.memory import check_differentiable
from rotescope.train.encodings.encode import Preprocessing, encode
from rotescope.train.engine.steps import DenoisingLoss, GlobalBatches
from rotescope.train.objective.families import FAMILIES, Predictor, family_of
from rotescope.train.objective.objective import draw_levels, noise_schedule


@dataclass(frozen=True)
class _Place:
    """Where an update stands: the layer, and which rows of the update are its own."""
    update: str
    component: str
    layer: str
    rows: torch.Tensor


class AttachedUpdates:
    """The updates as PEFT's layers on a pipeline, and two sets of pictures: `losses[0]` of the first, `losses[1]` of the other.

    What has no channels (norms, biases) and what is DoRA's is added to the weights, and stays as it is.
    """

    def __init__(self, pipe: Any, found: AdapterFile, updates: Mapping[str, LowRankUpdate], sets: tuple[Manifest, Manifest],
                 resolution: int):
        if type(pipe).__name__ not in FAMILIES:
            raise InputError(f"the denoising loss of {type(pipe).__name__} is not known here: take the ways that need no "
                             "data, strength and base-anchored")
        self.pipe, family = pipe, family_of(pipe)
        placed = place_updates(pipe, found)
        own = [(layer, update) for layer, update in placed if _is_adjustable(layer, update, updates[update.name])]
        if not own:
            raise InputError(f"{found.path} has no layer whose channels can be told apart by gradients (DoRA has none): take "
                             "the ways that need no data")
        components = dict.fromkeys(layer.component for layer, _ in own)
        self.trained = [family.denoiser, *(name for name in components if name != family.denoiser)]
        check_differentiable({name: pipe.components[name] for name in self.trained}, "this way of repairing")
        with_text = len(self.trained) > 1
        encoded = [encode(each, pipe, Preprocessing(resolution), {"vae": "", "text": ""}, texts=not with_text) for each in sets]
        self.places = [_Place(update.name, layer.component, layer.name, _rows(layer, updates[update.name]))
                       for layer, update in own]
        attach(pipe, [*_left(placed, own), *(_plain(layer, update, updates[update.name]) for layer, update in own)], 1.0)
        self.scales = {update.name: updates[update.name].scale for _, update in own}
        self._find_layers()
        self.predictor = Predictor(pipe, self.trained)
        device = pipe.components[family.denoiser].device
        self.schedule = noise_schedule(pipe.scheduler)
        self.losses = [DenoisingLoss(each, self.schedule, device) for each in encoded]

    def _find_layers(self):
        modules = {component: dict(self.pipe.components[component].named_modules()) for component in self.trained}
        self.layers = [modules[place.component][place.layer] for place in self.places]
        self.adapters = [layer.active_adapters[-1] for layer in self.layers]
        self.ups = [layer.lora_B[name].weight for layer, name in zip(self.layers, self.adapters, strict=True)]
        for layer, name, up in zip(self.layers, self.adapters, self.ups, strict=True):
            layer.lora_A[name].weight.requires_grad_(False)
            up.requires_grad_(True)

    @property
    def names(self) -> list[str]:
        """Of the updates that gradients reach."""
        return list(dict.fromkeys(place.update for place in self.places))

    def numbers(self, updates: Mapping[str, LowRankUpdate], gain: float = 1.0) -> list[torch.Tensor]:
        """What `use` takes: the updates' `up` as the layers hold them, times `gain`; 0 is the base. `down` is the LoRA's own."""
        return [(gain * updates[place.update].scale / self.scales[place.update] * updates[place.update].up[place.rows])
                .reshape(up.shape).to(up) for place, up in zip(self.places, self.ups, strict=True)]

    def use(self, numbers: Iterable[torch.Tensor]) -> None:
        """Put numbers into the layers; nothing is copied."""
        for up, own in zip(self.ups, numbers, strict=True):
            up.data = own

    def whole(self, parts: Iterable[torch.Tensor], updates: Mapping[str, LowRankUpdate]) -> dict[str, torch.Tensor]:
        """Tensors like the layers' own `up` -> those of the updates, (out, r): several layers may share one update's rows."""
        found = {name: torch.zeros_like(updates[name].up) for name in self.names}
        for place, part in zip(self.places, parts, strict=True):
            found[place.update][place.rows] = part.detach().flatten(1).to(found[place.update])
        return found

    def batches(self, which: int, size: int, seed: int) -> GlobalBatches:
        """Endless batches of one of the two sets; the same seed draws the same."""
        encoded = self.losses[which].encoded
        return GlobalBatches(encoded, [1] * len(encoded.captions), size, draw_levels(self.schedule), seed=seed)

    def gradients(self, which: int, size: int, batches: int, seed: int, updates: Mapping[str, LowRankUpdate]
                  ) -> dict[str, torch.Tensor]:
        """∂/∂up of the mean denoising loss of a set, (out, r) by the updates' names: a single backward pass a batch."""
        drawn = self.batches(which, size, seed)
        total = [torch.zeros_like(up) for up in self.ups]
        for _ in range(batches):
            loss = self.losses[which](self.predictor, next(drawn)).mean() / batches
            for sum_, part in zip(total, torch.autograd.grad(loss, self.ups), strict=True):
                sum_ += part
        return self.whole(total, updates)


def base_weights(placed: list[tuple[PipelineLayer, LayerUpdate]],
                 updates: Mapping[str, LowRankUpdate]) -> dict[str, torch.Tensor]:
    """The weights under the updates, (out, n), put together where several layers share one. InputError where a size differs."""
    found: dict[str, torch.Tensor] = {}
    for layer, update in placed:
        low = updates[update.name]
        if not low.is_matrix:
            continue
        weight = getattr(layer.module, "base_layer", layer.module).weight.detach().flatten(1)
        rows = _rows(layer, low)
        if not weight.is_floating_point() or weight.shape != (len(rows), low.down.shape[1]):
            raise InputError(f"{update.name} has the size {low.up.shape[0]} × {low.down.shape[1]}, and its layer "
                             f"{' × '.join(map(str, layer_shape(layer.module)))}: name the LoRA's own base, without --quantize")
        whole = found.setdefault(update.name, torch.zeros(low.up.shape[0], weight.shape[1]))
        whole[rows] = weight.to(whole)
    return found


def _rows(layer, low):
    every = torch.arange(low.up.shape[0])
    return torch.cat([every[part] for part in layer.rows]) if layer.rows else every


def _is_adjustable(layer, update, low):
    module = getattr(layer.module, "base_layer", layer.module)
    return low.is_matrix and update.magnitude is None and isinstance(module, SIDE_BY_SIDE)


def _plain(layer, update, low):
    """The update, or its rows of the layer, as a plain LoRA that stands beside it."""
    down = low.down.reshape(len(low.down), *layer_shape(layer.module)[1:])
    up = low.up[_rows(layer, low)]
    return layer, LayerUpdate(update.name, "LoRA", {"up": up, "down": down}, update.keys, low.scale * len(low.down))


def _left(placed, own):
    """What is added to the weights: updates without channels, and what the others do to biases."""
    taken = {id(update) for _, update in own}
    yield from ((layer, update) for layer, update in placed if id(update) not in taken)
    for layer, update in own:
        bias = update.delta_bias()
        if bias is not None:
            yield layer, replace(update, kind="full", factors={"diff_b": bias}, alpha=None, scalar=1.0, rows=())
