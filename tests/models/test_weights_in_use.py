"""Files of weights through the commands: what is told, what run.json says, and the audit's control on a merged adapter."""
import json

import numpy as np
import pytest
import torch
from adapter_files import PARTS, numbers
from instruments import JUDGED, leave
from PIL import Image
from safetensors.torch import save_file
from test_single_files import one_file, without_weights
from tiny_families import tiny_family

from rotescope import cli
from rotescope.models.pipelines import load_pipeline

LAYERS = {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q": (16, 16), "lora_unet_conv_out": (4, 16, 3, 3),
          "lora_te_text_model_encoder_layers_0_mlp_fc1": (32, 16)}
FEW = ["--num_inference_steps", "2", "--seeds", "0", "--resolution", "16", "--device", "cpu"]


def adapter(file, form, scale=1.0):
    save_file({f"{layer}.{end}": w.contiguous() * (scale if "alpha" not in end else 1) for layer, shape in LAYERS.items()
               for end, w in PARTS[form](shape, 3)[0].items()}, file)
    return file


def pixels(folder):
    return [np.asarray(Image.open(f), int) for f in sorted((folder / "images").glob("*.png"))]


def test_generate_takes_a_single_file_adapters_and_an_embedding(tmp_path, capsys):
    file = one_file(tiny_family("sd1"), tmp_path / "one.safetensors")
    config = without_weights(tiny_family("sd1"), tmp_path / "config")
    one, two = adapter(tmp_path / "one-lora.safetensors", "alpha"), adapter(tmp_path / "two.safetensors", "LoKr")
    save_file({"emb_params": numbers(1, 16, seed=8) * 5}, tmp_path / "zwx.safetensors")
    (tmp_path / "prompts.txt").write_text("a zwx")
    argv = ["generate", "--model", file, "--model_config", config, "--prompts", tmp_path / "prompts.txt", *FEW]
    assert leave(cli.main, [*argv, "--output_dir", tmp_path / "plain"]) == 0
    capsys.readouterr()
    loras = ["--lora", f"{one}:0.5", two, "--embedding", tmp_path / "zwx.safetensors"]
    assert leave(cli.main, [*argv, *loras, "--output_dir", tmp_path / "all"]) == 0
    told = capsys.readouterr().err
    assert f"{file}: a single-file checkpoint of Stable Diffusion" in told
    assert f"{one}: LoRA for Stable Diffusion" in told
    assert ("rank 2, strength 0.5 (alpha/rank); 2 layers of the denoiser, 1 layer of the text encoder; attached at strength "
            "0.5") in told
    assert "the word zwx in a prompt calls it (1 vector)" in told
    run = json.loads((tmp_path / "all/run.json").read_text())
    assert [part.partition(":")[2] for part in run["hashes"]["lora"].split()] == ["0.5", "1"]
    assert f"embedding {tmp_path}/zwx.safetensors" in run["hashes"]
    assert run["hashes"]["model"] == json.loads((tmp_path / "plain/run.json").read_text())["hashes"]["model"]
    assert np.abs(pixels(tmp_path / "plain/none")[0] - pixels(tmp_path / "all/none")[0]).max() > 2
    whole = load_pipeline(file, [f"{one}:0.5", two], model_config=str(config))
    assert not torch.equal(whole.unet.conv_out.weight, load_pipeline(file, model_config=str(config)).unet.conv_out.weight)


@pytest.mark.parametrize("form", ["LoKr", "alpha"])
def test_an_audit_sees_what_an_adapter_changes_and_samples_its_base(form, bases, images, tmp_path, capsys):
    file = adapter(tmp_path / "a.safetensors", form)
    argv = ["audit", "--model", bases("sd1"), "--train_data", images, "--verify", "false", "--max_prompts", "1", *FEW]
    assert leave(cli.main, [*argv, "--lora", file, "--base", "auto", "--output_dir", tmp_path / "out"]) in JUDGED
    run = json.loads((tmp_path / "out/samples/run.json").read_text())
    assert run["controls"]["adapter"]["change"] > 0.01
    assert run["config"]["lora"] == [str(file)]
    alone = [*argv, "--output_dir", tmp_path / "alone", "--base", bases("sd1")]
    assert leave(cli.main, alone) in JUDGED
    base, expected = pixels(tmp_path / "out/base/none"), pixels(tmp_path / "alone/samples/none")
    assert all(np.abs(one - two).max() <= 1 for one, two in zip(base, expected, strict=True))
    assert any(np.abs(one - two).max() > 2 for one, two in zip(base, pixels(tmp_path / "out/samples/none"), strict=True))
    weightless = adapter(tmp_path / "zero.safetensors", form, 0.0)
    capsys.readouterr()
    assert leave(cli.main, [*argv, "--lora", weightless, "--output_dir", tmp_path / "zero"]) == 2
    assert "zero.safetensors changes nothing" in capsys.readouterr().err
    assert leave(cli.main, [*argv, "--lora", f"{file}:0", "--output_dir", tmp_path / "zero"]) == 2
    assert not (tmp_path / "zero").exists()
