"""Other implementations write adapters and apply them; we read what they wrote, and the layers do the same."""
from functools import partial

import pytest
import torch
from lycoris.modules.full import FullModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from peft import LoraConfig, LoraModel, get_peft_model_state_dict

from rotescope.models.adapters.adapter_file import updates_of
from rotescope.models.adapters.layer_updates import updated_weight

LINEAR, CONV = partial(torch.nn.Linear, 24, 32), partial(torch.nn.Conv2d, 24, 32, 3, padding=1)
NORM = partial(torch.nn.GroupNorm, 8, 24)
LYCORIS = [  # what writes it, on what layer, with which settings
    (LoConModule, LINEAR, {}), (LoConModule, CONV, {}), (LoConModule, CONV, {"use_tucker": True}),
    (LoConModule, LINEAR, {"weight_decompose": True}), (LoConModule, LINEAR, {"weight_decompose": True, "wd_on_out": False}),
    (LoConModule, CONV, {"weight_decompose": True, "wd_on_out": False}), (LoConModule, LINEAR, {"rs_lora": True}),
    (LoConModule, LINEAR, {"use_scalar": True}),
    (LohaModule, LINEAR, {}), (LohaModule, CONV, {}), (LohaModule, CONV, {"use_tucker": True}),
    (LohaModule, LINEAR, {"weight_decompose": True}), (LohaModule, LINEAR, {"rs_lora": True}),
    (LokrModule, LINEAR, {}), (LokrModule, CONV, {}), (LokrModule, CONV, {"use_tucker": True}),
    (LokrModule, LINEAR, {"decompose_both": True, "factor": 8}), (LokrModule, LINEAR, {"full_matrix": True}),
    (LokrModule, CONV, {"full_matrix": True}), (LokrModule, LINEAR, {"weight_decompose": True}),
    (FullModule, LINEAR, {}), (FullModule, CONV, {}), (NormModule, NORM, {}),
]


def with_random_numbers(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = parameter.data + torch.randn(parameter.shape, generator=generator) * 0.3
    return module


def inputs_of(layer):
    shape = {"Linear": (5, 24), "Conv2d": (2, 24, 6, 6), "GroupNorm": (2, 24, 6, 6)}[type(layer).__name__]
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


def updated(layer, tensors, tmp_path, strength=1.0):
    """The layer with what the tensors of a file make of it."""
    update, = updates_of(tmp_path / "a.safetensors", tensors).updates
    bias = update.delta_bias()
    with torch.no_grad():
        layer.weight.copy_(updated_weight(layer.weight, update, strength))
        if bias is not None:
            layer.bias.add_(strength * bias)
    return layer


@pytest.mark.parametrize(("kind", "layer", "settings"), LYCORIS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_lycoris_layers_do_the_same(kind, layer, settings, tmp_path):
    torch.manual_seed(0)
    ours, theirs = layer(), layer()
    theirs.load_state_dict(ours.state_dict())
    sizes = {} if kind in (FullModule, NormModule) else {"lora_dim": 2, "alpha": 1}
    module = kind("lora_unet_x", theirs, 1.0, **sizes, **settings)
    if kind is FullModule:  # it takes the layer's weight into itself, and saves the difference
        module.apply_to()
    with_random_numbers(module)
    written = module.custom_state_dict() if kind is not NormModule else module.state_dict()
    tensors = {f"lora_unet_x.{key}": w.detach().clone() for key, w in written.items() if w is not None}
    x = inputs_of(ours)
    expected = module(x)
    assert not torch.allclose(ours(x), expected, atol=1e-3)
    assert torch.allclose(updated(ours, tensors, tmp_path)(x), expected, atol=2e-5)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}, {"lora_bias": True}], ids=str)
@pytest.mark.parametrize("layer", [LINEAR, CONV])
def test_peft_layers_do_the_same(layer, settings, tmp_path):
    torch.manual_seed(0)
    ours, theirs = layer(), torch.nn.ModuleDict({"x": layer()})
    theirs["x"].load_state_dict(ours.state_dict())
    model = LoraModel(theirs, LoraConfig(r=2, lora_alpha=3, target_modules=["x"], init_lora_weights=False, **settings), "default")
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data = parameter.data * 1.3
    tensors = {f"unet.{key.removeprefix('model.')}": w.detach().clone() for key, w in get_peft_model_state_dict(model).items()}
    noted = {"parts": {"unet.lora_alpha": 3}, "rslora": settings.get("use_rslora", False)}
    update, = updates_of(tmp_path / "a.safetensors", tensors, noted).updates
    x, bias = inputs_of(ours), update.delta_bias()
    with torch.no_grad():
        ours.weight.copy_(updated_weight(ours.weight, update))
        if bias is not None:
            ours.bias.add_(bias)
    assert torch.allclose(ours(x), model.model["x"](x), atol=2e-5)
