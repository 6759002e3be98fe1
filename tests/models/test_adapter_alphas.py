"""Where a file says its alpha, and the older ways of naming layers: each as a hand would scale it."""
import json

import pytest
import torch
from adapter_files import numbers
from safetensors.torch import save_file
from tiny_families import tiny_family

from rotescope.models.lora import attach_lora

NAME = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
UP, DOWN = numbers(16, 2, seed=1), numbers(2, 16, seed=2)
PATTERN = {"unet.r": 2, "unet.lora_alpha": 3, "unet.alpha_pattern": {NAME: 5}}


def metadata(settings):
    return {"lora_adapter_metadata": json.dumps(settings)}


CASES = [  # keys of down and up, more tensors, the file's metadata, adapter_config.json beside it, the scale
    ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight", {}, None, None, 1.0),
    ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight", {}, metadata({"unet.r": 2, "unet.lora_alpha": 3}), None, 1.5),
    ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight", {}, metadata(PATTERN), None, 2.5),
    ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight", {}, metadata({"unet.lora_alpha": 3, "unet.use_rslora": True}), None,
     3 / 2 ** 0.5),
    ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight", {"unet.{}.alpha": 4.0}, metadata({"unet.lora_alpha": 3}), None, 2.0),
    ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight", {}, {"lora_adapter_metadata": "{torn"}, None, 1.0),
    ("unet.{}.lora_A.weight", "unet.{}.lora_B.weight", {}, metadata([1]), None, 1.0),
    ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight", {}, None, {"r": 2, "lora_alpha": 8}, 4.0),
    ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight", {}, None, None, 1.0),
    ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight", {}, None, None, 1.0),
    ("{}.lora.down.weight", "{}.lora.up.weight", {}, None, None, 1.0),
    ("PROCESSOR.to_q_lora.down.weight", "PROCESSOR.to_q_lora.up.weight", {}, None, None, 1.0),
    ("unet.PROCESSOR.to_q_lora.down.weight", "unet.PROCESSOR.to_q_lora.up.weight", {}, None, None, 1.0),
    ("unet.{}.lora.down.weight", "unet.{}.lora_B.weight", {}, None, None, 1.0),
    ("lora_unet_KOHYA.lora_down.weight", "lora_unet_KOHYA.lora_up.weight", {"lora_unet_KOHYA.alpha": 0.0}, None, None, 1.0),
    ("lycoris_KOHYA.lora_down.weight", "lycoris_KOHYA.lora_up.weight", {"lycoris_KOHYA.alpha": 1.0}, None, None, 0.5),
]


@pytest.mark.parametrize(("down", "up", "more", "noted", "beside", "scale"), CASES,
                         ids=[f"{n} {case[0]}" for n, case in enumerate(CASES)])
def test_the_scale_is_what_the_file_says(down, up, more, noted, beside, scale, tmp_path, capsys):
    def spelled(key):
        return key.format(NAME).replace("PROCESSOR", NAME.replace("to_q", "processor")).replace("KOHYA", NAME.replace(".", "_"))

    file = tmp_path / "adapter_model.safetensors"
    numbers_of = {spelled(key): torch.tensor(value) for key, value in more.items()}
    save_file({spelled(down): DOWN, spelled(up): UP} | numbers_of, file, metadata=noted)
    if beside:
        (tmp_path / "adapter_config.json").write_text(json.dumps(beside))
    pipe = tiny_family("sd1")
    before = pipe.unet.get_submodule(NAME).weight.clone()
    attach_lora(pipe, file, "it")
    layer = pipe.unet.get_submodule(NAME)
    found = layer.weight + sum(layer.get_delta_weight(name) for name in layer.active_adapters)
    assert torch.allclose(found, before + scale * UP @ DOWN, atol=1e-5)
    assert ("does not say its alpha" in capsys.readouterr().err) == (down.startswith("base_model") and not beside)


def test_eight_bits_are_read(tmp_path):
    up, down = (w.to(torch.float8_e4m3fn) for w in (UP, DOWN))
    save_file({f"unet.{NAME}.lora_A.weight": down, f"unet.{NAME}.lora_B.weight": up, f"unet.{NAME}.alpha": torch.tensor(1.0)},
              tmp_path / "a.safetensors")
    pipe = tiny_family("sd1")
    attach_lora(pipe, tmp_path / "a.safetensors", "it")
    layer = pipe.unet.get_submodule(NAME)
    assert torch.allclose(layer.get_delta_weight(layer.active_adapters[0]), up.float() @ down.float() / 2, atol=1e-5)
