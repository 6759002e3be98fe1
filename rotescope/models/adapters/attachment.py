"""Adapters on a pipeline, each with its strength; on and off again, to the bit.

A plain LoRA stays beside its layers, as PEFT's layers. What PEFT or diffusers' loader gets wrong (LoHa, LoKr,
DoRA, whole differences, factored kernels, norms) is added to the weights, of which the earlier ones are kept.
"""
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

from rotescope.common.errors import InputError
from rotescope.models.adapters.layer_index import PipelineLayer, layer_shape
from rotescope.models.adapters.layer_updates import LayerUpdate, updated_weight

KEPT = "rotescope_other_weights"  # the pipeline's attribute: what is swapped in and out
SIDE_BY_SIDE = (torch.nn.Linear, torch.nn.Conv2d)


class MergedWeights:
    """The weights that adapters have changed, and the ones that stood there before; one of the two is in place."""

    def __init__(self) -> None:
        self.other: dict[tuple[int, str], tuple[torch.nn.Module, torch.Tensor]] = {}
        self.is_on = True

    def put(self, module: torch.nn.Module, name: str, weight: torch.Tensor) -> None:
        """Set a weight or bias, (…), of a layer and keep the first one."""
        here = getattr(module, name)
        if (id(module), name) not in self.other:
            kept = torch.zeros_like(weight) if here is None else here.detach().clone()
            self.other[id(module), name] = module, kept
        if here is None:
            setattr(module, name, torch.nn.Parameter(weight, requires_grad=False))
        else:
            here.data = weight

    def switch(self, on: bool) -> None:
        """Put the changed weights in place, or the earlier ones."""
        if on == self.is_on:
            return
        for (identity, name), (module, other) in list(self.other.items()):
            parameter = getattr(module, name)
            self.other[identity, name] = module, parameter.data
            parameter.data = other.to(parameter.device, parameter.dtype)
        self.is_on = on


def merged_weights(pipe: Any) -> MergedWeights:
    """Those of a pipeline, made on first use."""
    if KEPT not in vars(pipe):
        setattr(pipe, KEPT, MergedWeights())
    return getattr(pipe, KEPT)


def switch_adapters(pipe: Any, on: bool) -> None:
    """Turn everything that was attached to a pipeline on or off."""
    if KEPT in vars(pipe):
        merged_weights(pipe).switch(on)
    for layer in (m for part in _parts(pipe) for m in part.modules() if isinstance(m, BaseTunerLayer)):
        layer.enable_adapters(on)


@contextmanager
def without_adapters(pipe: Any) -> Iterator[Any]:
    """The pipeline as it was before anything was attached, for a while."""
    switch_adapters(pipe, False)
    try:
        yield pipe
    finally:
        switch_adapters(pipe, True)


def attach(pipe: Any, placed: list[tuple[PipelineLayer, LayerUpdate]], strength: float) -> None:
    """Attach updates, each to its layer. InputError, before anything is changed, if one has another size than its layer."""
    sums = [(layer, _sums(layer, update, strength)) for layer, update in placed if not _may_stand_beside(layer, update)]
    beside = [(layer, update) for layer, update in placed if _may_stand_beside(layer, update)]
    for layer, update in beside:
        _check_size(layer, update)
    for layer, changed in sums:
        for name, weight in changed.items():
            merged_weights(pipe).put(_base(layer.module), name, weight)
    for component in dict.fromkeys(layer.component for layer, _ in beside):
        _stand_beside(getattr(pipe, component), [(la, u) for la, u in beside if la.component == component], strength)


def check_packed(placed: list[tuple[PipelineLayer, LayerUpdate]]) -> None:
    """InputError for an update that has to be added to weights which are packed into few bits."""
    for layer, update in placed:
        if _is_packed(_base(layer.module)) and not _may_stand_beside(layer, update):
            raise InputError(f"{update.name} ({update.kind}) is added to the weights themselves, and those of {layer.name} are "
                             "packed into few bits: name a model whose weights are not, and leave --quantize out")


def _parts(pipe):
    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


def _base(module):
    """The layer itself, where PEFT has put another one around it."""
    return getattr(module, "base_layer", module)


# ----- added to the weights

def _sums(layer, update, strength):
    """-> {"weight": …, "bias": …}, whichever change, in the layer's own format."""
    module, changed = _base(layer.module), {}
    with torch.no_grad():
        if update.kind not in ("full", "norm") or {"diff", "w_norm"} & set(update.factors):
            changed["weight"] = updated_weight(module.weight, update, strength).to(module.weight.dtype)
        delta = update.delta_bias()
        if delta is not None:
            bias = getattr(module, "bias", None)
            start = torch.zeros_like(module.weight[(slice(None), *[0] * (module.weight.dim() - 1))]) if bias is None else bias
            changed["bias"] = (start.to(delta.dtype) + strength * delta.reshape(start.shape).to(start.device)).to(start.dtype)
    return changed


# ----- beside the layers

def _may_stand_beside(layer, update):
    return update.is_plain and isinstance(_base(layer.module), SIDE_BY_SIDE) and \
        update.factors["down"].dim() == len(layer_shape(layer.module))


def _is_packed(module):
    return isinstance(module, torch.nn.Linear) and not module.weight.is_floating_point()


def _check_size(layer, update):
    """B A has the size of the layer, without the product."""
    up, down, shape = update.factors["up"], update.factors["down"], layer_shape(layer.module)
    if (up.shape[0], *down.shape[1:]) != shape or up.shape[1] != down.shape[0]:
        raise InputError(f"{update.name} has the size {up.shape[0]} × {' × '.join(map(str, down.shape[1:]))}, and its layer "
                         f"{' × '.join(map(str, shape))}")


def _stand_beside(part, placed, strength):
    """PEFT's layers, with the numbers of the file in them; ranks that differ from the most common one are named."""
    updates = {layer.name: update for layer, update in placed}
    common = Counter(update.rank for update in updates.values()).most_common(1)[0][0]
    odd = {name.replace(".", r"\."): update.rank for name, update in updates.items() if update.rank != common}
    adapter = f"rotescope_{len(getattr(part, 'peft_config', {}))}"
    part.add_adapter(LoraConfig(r=common, lora_alpha=common, rank_pattern=odd, alpha_pattern=odd, init_lora_weights=False,
                                target_modules=list(updates)), adapter_name=adapter)
    modules = dict(part.named_modules())
    for name, update in updates.items():
        module = modules[name]
        base = _base(module)
        weight, dtype = base.weight, base.compute_dtype if _is_packed(base) else base.weight.dtype
        for side, factor in ((module.lora_A, "down"), (module.lora_B, "up")):
            numbers = update.factors[factor].reshape(side[adapter].weight.shape)
            side[adapter].weight.data = numbers.to(weight.device, dtype)
        module.lora_alpha[adapter] = update.scale * strength * update.rank  # whoever sets the scale to 1 later finds it so
        module.set_scale(adapter, 1.0)
    part.set_adapter(list(part.peft_config))
