"""The layers of a pipeline by every name that a file may give them."""
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch

from rotescope.common.errors import InputError
from rotescope.models.adapters.original_names import LAST, flux_names, sd3_names, unet_names

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class PipelineLayer:
    """A layer of a pipeline: its component, its name there, and which rows of an update are its own (none: all)."""
    component: str
    name: str
    module: torch.nn.Module
    rows: tuple[slice, ...] = ()


class LayerIndex:
    """Finds layers of a pipeline by diffusers' names, by the original ones, and by either with _ for each dot."""

    def __init__(self, pipe: Any):
        self.exact: dict[tuple[str, str], tuple[PipelineLayer, ...]] = {}
        self.joined: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
        self.encoders = [name for name in ENCODERS if isinstance(getattr(pipe, name, None), torch.nn.Module)]
        self.denoiser = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
        self._add_denoiser(getattr(pipe, self.denoiser))
        for name in self.encoders:
            self._add_encoder(name, getattr(pipe, name))

    def find(self, part: str, name: str) -> tuple[PipelineLayer, ...]:
        """The layers that a name means, none if there are none: several where one layer of the file is cut into rows.

        part: as layer_names.PARTS has it. InputError if the name may mean either of two layers.
        """
        for place in self._places(part):
            for spelled in dict.fromkeys((name, name.removeprefix("text_model."), name.removeprefix("text_model_"))):
                if found := self.exact.get((place, spelled)):
                    return found
                homes = self.joined.get((place, spelled.replace(".", "_")), set())
                if len(homes) > 1:
                    raise InputError(f"{name} may mean {' or '.join(sorted(home[1] for home in homes))}: name a LoRA whose keys "
                                     "have dots")
                if homes:
                    return self.exact[next(iter(homes))]
        return ()

    def _places(self, part):
        if part == "text_encoder_3" and part not in self.encoders:  # kohya's third is T5, which FLUX has second
            return ("text_encoder_2",)
        return (part,) if part else ("denoiser", *self.encoders)

    def _add(self, place, spelled, layers):
        if (place, spelled) not in self.exact:
            self.exact[place, spelled] = layers
            self.joined[place, spelled.replace(".", "_")].add((place, spelled))

    def _add_encoder(self, component, part):
        for name, module in _layers_of(part):
            self._add(component, name.removeprefix("text_model."), (PipelineLayer(component, name, module),))

    def _add_denoiser(self, part):
        layers = {name: PipelineLayer(self.denoiser, name, module) for name, module in _layers_of(part)}
        for name, layer in layers.items():
            self._add("denoiser", name, (layer,))
        kind, names = type(part).__name__, set(layers)
        pairs = unet_names(names, part.config.layers_per_block) if \
            kind == "UNet2DConditionModel" and isinstance(part.config.layers_per_block, int) else flux_names(names) if \
            kind == "FluxTransformer2DModel" else sd3_names(names) if kind == "SD3Transformer2DModel" else ()
        for original, ours in pairs:
            if set(ours) <= names:
                self._add("denoiser", original, _cut([layers[name] for name in ours], kind))
        if kind != "UNet2DConditionModel" and "norm_out.linear" in layers:
            self._add("denoiser", LAST, (_swapped(layers["norm_out.linear"]),))


def layer_shape(module: Any) -> tuple[int, ...]:
    """Of a layer's weight, (out, in, …), also where its numbers are packed into few bits or PEFT's layer is around it."""
    base = getattr(module, "base_layer", module)
    return (base.out_features, base.in_features) if isinstance(base, torch.nn.Linear) else tuple(base.weight.shape)


def _layers_of(part):
    """Its layers that hold numbers of their own, under the names that they have without adapters."""
    for name, module in part.named_modules():
        if isinstance(getattr(module, "weight", None), torch.Tensor) and ".base_layer" not in name and ".lora_" not in name:
            yield name, module


def _cut(layers, kind):
    """Layers that stand for one, each with its rows of it. SD3's last block has one of two halves the other way round."""
    if len(layers) == 1:
        layer = layers[0]
        swapped = kind == "SD3Transformer2DModel" and layer.name.endswith("norm1_context.linear") and \
            layer_shape(layer.module)[0] == 2 * layer_shape(layer.module)[1]
        return (_swapped(layer) if swapped else layer,)
    found, start = [], 0
    for layer in layers:
        stop = start + layer_shape(layer.module)[0]
        found.append(PipelineLayer(layer.component, layer.name, layer.module, (slice(start, stop),)))
        start = stop
    return tuple(found)


def _swapped(layer):
    half = layer_shape(layer.module)[0] // 2
    return PipelineLayer(layer.component, layer.name, layer.module, (slice(half, None), slice(0, half)))
