"""Channels of updates by hand arithmetic, and files rewritten in every format."""
import json

import pytest
import torch
from adapter_files import PARTS, numbers, with_magnitude
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rotescope.models.adapters.adapter_file import read_adapter
from rotescope.models.adapters.low_rank import (
    LowRankUpdate,
    base_alignment,
    channels_of,
    gain_slopes,
    low_rank_of,
    with_gains,
)
from rotescope.models.adapters.rewriting import save_rewritten

LAYERS = {"lora_unet_mid_block_attentions_0_proj_in": (16, 8), "lora_unet_conv_in": (8, 4, 3, 3)}


def unit(n, *places):
    return torch.eye(n)[:, list(places)]


def test_gains_by_hand():
    """ΔW = 2 · (3 e₀ f₁ᵀ + 1 e₂ f₀ᵀ): its channels are 6 and 2; the first is turned off, the other halved."""
    update = LowRankUpdate("layer", unit(4, 0, 2) * torch.tensor([3.0, 1.0]), unit(3, 1, 0).T, scale=2.0)
    channels = channels_of(update)
    assert torch.allclose(channels.values, torch.tensor([6.0, 2.0]))
    assert update.energy == pytest.approx(40.0)
    found = with_gains(update, channels, torch.tensor([0.0, 0.5]))
    wanted = torch.zeros(4, 3)
    wanted[2, 0] = 1.0
    assert torch.allclose(found.delta(), wanted, atol=1e-6)
    assert found.down is update.down
    assert with_gains(update, channels, torch.ones(2)) is update


def test_alignment_by_hand():
    """A channel inside the base's principal subspace has 1, one orthogonal to it on both sides 0, one half inside ½."""
    weight = torch.diag(torch.tensor([9.0, 5.0, 0.1, 0.1]))
    sides = {1.0: (0, 1), 0.0: (2, 3), 0.5: (0, 3)}
    for wanted, (row, column) in sides.items():
        channels = channels_of(LowRankUpdate("layer", unit(4, row), unit(4, column).T))
        assert float(base_alignment(channels, weight, 2)) == pytest.approx(wanted, abs=1e-6)


def test_slopes_are_those_of_the_gains():
    """L = ‖X ΔW(g) − Y‖² by autograd in g, and by gain_slopes of ∂L/∂up, at gains that are not 1."""
    update = LowRankUpdate("layer", numbers(6, 3, seed=0).double(), numbers(3, 5, seed=1).double(), 0.7)
    channels, gains = channels_of(update), torch.tensor([0.3, 0.9, 0.5], dtype=torch.float64, requires_grad=True)
    at = with_gains(update, channels, gains)
    target = numbers(6, 5, seed=2).double()
    slopes = torch.autograd.grad((at.delta() - target).square().sum(), gains)[0]
    up = at.up.detach().requires_grad_(True)
    gradient = torch.autograd.grad((0.7 * up @ update.down - target).square().sum(), up)[0]
    assert torch.allclose(gain_slopes(gradient, update, channels), slopes)


# ----- files

def adapter(form, folder, magnitude=False):
    """A file with two layers in a format -> its path."""
    tensors = {}
    for seed, (layer, shape) in enumerate(LAYERS.items()):
        keys, delta = PARTS[form](shape, 10 * seed)
        if magnitude:
            keys, _ = with_magnitude(keys, numbers(*shape, seed=50 + seed), delta, "rows")
        tensors |= {f"{layer}.{key}": w.contiguous() for key, w in keys.items()}
    save_file(tensors, folder / "mine.safetensors", metadata={"ss_epoch": "3"})
    return folder / "mine.safetensors"


def deltas(path):
    return {update.name: update.delta_weight() for update in read_adapter(path).updates}


@pytest.mark.parametrize("form", PARTS)
def test_every_format_is_written_back(form, tmp_path):
    """Untouched, to the bit; scaled, under the same keys; filtered, with the ΔW that was computed."""
    file = adapter(form, tmp_path)
    found, tensors = read_adapter(file), load_file(file)
    before = {update.name: low_rank_of(update) for update in found.updates}
    for name, delta in deltas(file).items():
        assert torch.allclose(before[name].delta(), delta.flatten(1), atol=1e-4 * delta.abs().max())
    same, plain = save_rewritten(found, before, dict(before), tmp_path, "same")
    assert (same.name, plain) == ("same.safetensors", 0)
    assert all(torch.equal(w, tensors[key]) for key, w in load_file(same).items())
    with safe_open(same, "pt") as opened:
        assert opened.metadata()["ss_epoch"] == "3"

    halved = {name: LowRankUpdate(name, low.up, low.down, low.scale / 2) for name, low in before.items()}
    half, plain = save_rewritten(found, before, halved, tmp_path, "half")
    assert (load_file(half).keys(), plain) == (tensors.keys(), 0)
    for name, delta in deltas(half).items():
        assert torch.allclose(delta, deltas(file)[name] / 2, atol=1e-5)

    channels = {name: channels_of(low) for name, low in before.items()}
    gains = {name: torch.ones(len(each.values)) for name, each in channels.items()}
    for each in gains.values():
        each[0] = 0
    filtered = {name: with_gains(low, channels[name], gains[name]) for name, low in before.items()}
    less, plain = save_rewritten(found, before, filtered, tmp_path, "less", note="strongest off")
    assert plain == (2 if form.startswith("Lo") else 0)
    assert plain or load_file(less).keys() == tensors.keys()
    for name, delta in deltas(less).items():
        u, s, vt = torch.linalg.svd(deltas(file)[name].flatten(1), full_matrices=False)
        assert torch.allclose(delta.flatten(1), u[:, 1:] * s[1:] @ vt[1:], atol=1e-4 * float(s[0]))


def test_half_precision_stays_half(tmp_path):
    file = adapter("alpha", tmp_path)
    save_file({key: w.half() for key, w in load_file(file).items()}, file)
    found = read_adapter(file)
    before = {update.name: low_rank_of(update) for update in found.updates}
    after = {name: with_gains(low, channels_of(low), torch.tensor([1.0, 0.0])) for name, low in before.items()}
    less, _ = save_rewritten(found, before, after, tmp_path, "less")
    assert {w.dtype for w in load_file(less).values()} == {torch.float16}
    assert all(torch.equal(w, load_file(file)[key]) for key, w in load_file(less).items() if "down" in key)


def test_of_a_dora_the_magnitudes_stay(tmp_path):
    file = adapter("alpha", tmp_path, magnitude=True)
    found, tensors = read_adapter(file), load_file(file)
    before = {update.name: low_rank_of(update) for update in found.updates}
    after = {name: with_gains(low, channels_of(low), torch.tensor([0.0, 1.0])) for name, low in before.items()}
    less = load_file(save_rewritten(found, before, after, tmp_path, "less")[0])
    assert less.keys() == tensors.keys()
    assert {key for key in less if not torch.equal(less[key], tensors[key])} == {f"{name}.lora_up.weight" for name in LAYERS}


def test_peft_settings_go_along(tmp_path):
    """α stands in adapter_config.json alone: the repaired folder holds it, so the scale is read as before."""
    (tmp_path / "mine").mkdir()
    keys, delta = PARTS["PEFT"]((6, 5), 0)
    file = tmp_path / "mine/adapter_model.safetensors"
    save_file({f"base_model.model.conv_in.{key}": w.contiguous() for key, w in keys.items()}, file)
    file.with_name("adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 8}))
    found = read_adapter(file)
    before = {update.name: low_rank_of(update) for update in found.updates}
    after = {name: LowRankUpdate(name, low.up, low.down, low.scale / 4) for name, low in before.items()}
    less, _ = save_rewritten(found, before, after, tmp_path, "mine-repaired")
    assert less == tmp_path / "mine-repaired/adapter_model.safetensors"
    assert torch.allclose(next(iter(deltas(less).values())), delta)
