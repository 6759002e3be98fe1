"""A checkpoint in one file is the pipeline that it was made of; the configurations that ship are those of the models."""
import gzip
import json
import re
from importlib.resources import files

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import save_file
from tiny_families import tiny_family
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from rotescope.common.errors import InputError
from rotescope.models.adapters.original_names import unet_name, unet_names
from rotescope.models.pipelines import load_pipeline
from rotescope.models.single_files.configuration import CONFIGS, configuration_folder
from rotescope.models.single_files.contents import describe_model


def original_unet(weights, layers):
    """A UNet's weights under their original names."""
    found = {}
    for key, w in weights.items():
        layer, _, end = key.rpartition(".")
        block = re.match(r"up_blocks\.\d+", layer)
        attentive = block and any(k.startswith(f"{block[0]}.attentions.") for k in weights)
        found[f"model.diffusion_model.{unet_name(layer, layers).replace('*', str(1 + bool(attentive)))}.{end}"] = w
    return found


def original_vae(weights, blocks):
    """A VAE's weights under their original names: block, mid, down in order, up the other way round."""
    found = {}
    for key, w in weights.items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        found[f"first_stage_model.{name.replace('conv_norm_out', 'norm_out').replace('conv_shortcut', 'nin_shortcut')}"] = w
    return found


OPEN_CLIP = {"encoder.layers.": "transformer.resblocks.", "final_layer_norm": "ln_final", "layer_norm": "ln_",
             "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.": "attn.",
             "embeddings.token_embedding.weight": "token_embedding.weight",
             "embeddings.position_embedding.weight": "positional_embedding"}


def open_clip_names(weights):
    """A second text encoder's weights as open_clip names them: query, key and value in one, the projection transposed."""
    found, start = {}, "conditioner.embedders.1.model."
    for key, w in weights.items():
        name = key.removeprefix("text_model.")
        if name == "text_projection.weight":
            found[f"{start}text_projection"] = w.T.contiguous()
            continue
        for ours, theirs in OPEN_CLIP.items():
            name = name.replace(ours, theirs)
        if joined := re.match(r"(.*attn\.)([qkv])_proj\.(weight|bias)$", name):
            if joined[2] == "q":
                parts = [weights[key.replace("q_proj", f"{x}_proj")] for x in "qkv"]
                found[f"{start}{joined[1]}in_proj_{joined[3]}"] = torch.cat(parts)
            continue
        found[start + name] = w
    return found


def one_file(pipe, file, dtype=torch.float32, **marks):
    """A pipeline -> its checkpoint in one file."""
    weights = original_unet(pipe.unet.state_dict(), pipe.unet.config.layers_per_block)
    weights |= original_vae(pipe.vae.state_dict(), len(pipe.vae.config.block_out_channels))
    text = {f"text_model.{key.removeprefix('text_model.')}": w for key, w in pipe.text_encoder.state_dict().items()}
    second = getattr(pipe, "text_encoder_2", None)
    start = "conditioner.embedders.0.transformer." if second else "cond_stage_model.transformer."
    weights |= {start + key: w for key, w in text.items()} | (open_clip_names(second.state_dict()) if second else {})
    save_file({key: w.to(dtype).contiguous().clone() for key, w in weights.items()} | marks, file)
    return file


def without_weights(pipe, folder):
    pipe.save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    return folder


def image_of(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe("a cat", num_inference_steps=2, height=16, width=16, output_type="pt",
                generator=torch.Generator().manual_seed(0)).images


@pytest.mark.parametrize(("name", "dtype"), [("sd1", torch.float32), ("sdxl", torch.float32), ("sd1", torch.float16)], ids=str)
def test_a_file_makes_the_images_of_its_pipeline(name, dtype, tmp_path):
    pipe = tiny_family(name)
    file, config = one_file(pipe, tmp_path / "one.safetensors", dtype), without_weights(pipe, tmp_path / "config")
    for part in (p for p in pipe.components.values() if isinstance(p, torch.nn.Module)):
        part.to(dtype).float()
    assert torch.allclose(image_of(load_pipeline(file, model_config=str(config))), image_of(pipe), atol=1e-5)


@pytest.mark.parametrize(("marks", "asked", "kind", "zero"), [
    ({}, None, "epsilon", False), ({"v_pred": torch.zeros(0)}, None, "v_prediction", False),
    ({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, None, "v_prediction", True),
    ({}, "v_prediction", "v_prediction", False),
    ({"v_pred": torch.zeros(0)}, "epsilon", "epsilon", False)])
def test_what_it_predicts_is_read_or_asked_for(marks, asked, kind, zero, tmp_path):
    pipe = tiny_family("sd1")
    file, config = one_file(pipe, tmp_path / "one.safetensors", **marks), without_weights(pipe, tmp_path / "config")
    found = load_pipeline(file, model_config=str(config), prediction_type=asked)
    assert found.scheduler.config.prediction_type == kind
    assert found.scheduler.config.get("rescale_betas_zero_snr", False) == zero
    about = describe_model(file)
    assert (about.prediction_type, about.zero_terminal_snr) == ("v_prediction" if marks else None, zero)
    assert float(found.scheduler.alphas_cumprod[-1]) < 1e-4 if zero else True


def test_a_folder_may_be_told_what_it_predicts(bases):
    assert load_pipeline(bases("sd1"), prediction_type="v_prediction").scheduler.config.prediction_type == "v_prediction"
    with pytest.raises(InputError, match="--prediction_type is for diffusion models, and this one has FlowMatch"):
        load_pipeline(bases("flux"), prediction_type="epsilon")
    with pytest.raises(InputError, match="--model_config is for a single file, and .* is none: leave it out"):
        load_pipeline(bases("sd1"), model_config=str(bases("sd1")))


PUBLISHED = {  # numbers in each part, as the models' cards and papers have them
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}}


@pytest.mark.parametrize("name", PUBLISHED)
def test_configurations_that_ship_have_the_published_sizes(name):
    parts = json.loads((CONFIGS / f"{name}.json").read_text())
    found = {}
    with torch.device("meta"):
        for part in PUBLISHED[name]:
            kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}.get(part)
            if kind is None:
                kind = CLIPTextModel if part == "text_encoder" else CLIPTextModelWithProjection
                module = kind(CLIPTextConfig(**parts[part]))
            else:
                module = kind.from_config(parts[part])
            found[part] = sum(p.numel() for p in module.parameters())
    assert found == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_original_names_are_those_that_diffusers_converts(name):
    """Of each layer of the real models: its loader makes our name of it again."""
    settings = json.loads((CONFIGS / f"{name}.json").read_text())["unet"]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(settings)
    layers = {key: module for key, module in unet.named_modules() if hasattr(module, "weight")}
    originals = {ours[0]: name for name, ours in unet_names(set(layers), settings["layers_per_block"])}
    assert set(originals) == set(layers)
    marked = {f"model.diffusion_model.{original}.{end}": torch.tensor(float(n)) for n, original in enumerate(originals.values())
              for end in ("weight", "bias")}
    back = convert_ldm_unet_checkpoint(dict(marked), dict(unet.config))
    assert {float(back[f"{layer}.weight"]): layer for layer in originals} == dict(enumerate(originals))


def test_the_tokenizer_that_is_made_is_clips():
    import open_clip
    known = open_clip.SimpleTokenizer()
    texts = ["a photo of a sks dog, 8k", "Émile's naïve café — 東京 🎨", "1girl, (best quality:1.2), <lora:x:1>",
             "   two   spaces\nand lines", "don't you'll we've", "supercalifragilisticexpialidocious"]
    with configuration_folder("SDXL", None) as folder:
        first, second = (AutoTokenizer.from_pretrained(folder / part) for part in ("tokenizer", "tokenizer_2"))
    assert len(first) == len(known.encoder) == 49408
    assert (first.pad_token, second.pad_token, first.model_max_length) == ("<|endoftext|>", "!", 77)
    for text in texts:
        assert first(text.replace("\n", " ")).input_ids == [49406, *known.encode(text), 49407], text
    merges = gzip.decompress((files("open_clip") / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().split("\n")
    assert merges[1] == "i n"


SD3 = {"pos_embed.pos_embed": "pos_embed", "pos_embed.proj": "x_embedder.proj", "context_embedder": "context_embedder",
       "proj_out": "final_layer.linear", "norm_out.linear": "final_layer.adaLN_modulation.1"} | {
    f"time_text_embed.{one}_embedder.linear_{n}": f"{two}_embedder.mlp.{2 * n - 2}"
    for one, two in (("timestep", "t"), ("text", "y")) for n in (1, 2)}
SD3_BLOCK = {"attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj",
             "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2", "ff_context.net.0.proj": "context_block.mlp.fc1",
             "ff_context.net.2": "context_block.mlp.fc2", "norm1.linear": "x_block.adaLN_modulation.1",
             "norm1_context.linear": "context_block.adaLN_modulation.1"}


def original_sd3(weights):
    """SD3's transformer under its original names: the last modulations have shift and scale the other way round."""
    last, found = max(int(key.split(".")[1]) for key in weights if key.startswith("transformer_blocks")), {}
    for key, w in weights.items():
        layer, _, end = key.rpartition(".")
        block = re.match(r"transformer_blocks\.(\d+)\.(.*)$", layer)
        if layer in ("norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear"):
            w = torch.cat(w.chunk(2)[::-1])
        if key in SD3:
            found[SD3[key]] = w
        elif not block:
            found[f"{SD3[layer]}.{end}"] = w
        elif block[2] in SD3_BLOCK:
            found[f"joint_blocks.{block[1]}.{SD3_BLOCK[block[2]]}.{end}"] = w
        elif block[2] in ("attn.to_q", "attn.add_q_proj"):
            side = "context_block" if "add" in block[2] else "x_block"
            parts = [weights[key.replace("to_q", f"to_{x}").replace("add_q", f"add_{x}")] for x in "qkv"]
            found[f"joint_blocks.{block[1]}.{side}.attn.qkv.{end}"] = torch.cat(parts)
    return found


@pytest.mark.parametrize("naming", ["original", "diffusers", "within a checkpoint"])
def test_a_transformer_file_takes_the_rest_from_a_folder(naming, tmp_path):
    pipe = tiny_family("sd3")
    weights = pipe.transformer.state_dict()
    named = weights if naming == "diffusers" else original_sd3(weights)
    start = "model.diffusion_model." if naming == "within a checkpoint" else ""
    save_file({start + key: w.contiguous().clone() for key, w in named.items()}, tmp_path / "t.safetensors")
    for w in weights.values():
        w.add_(1)
    pipe.save_pretrained(tmp_path / "whole")
    with pytest.raises(InputError, match="is the denoiser of SD3 .* alone, without text encoder and VAE: name a whole folder"):
        load_pipeline(tmp_path / "t.safetensors")
    found = load_pipeline(tmp_path / "t.safetensors", model_config=str(tmp_path / "whole")).transformer.state_dict()
    assert all(torch.allclose(w - 1, found[key], atol=1e-6) for key, w in weights.items() if key != "pos_embed.pos_embed")


def test_a_whole_sd3_file_makes_the_images_of_its_pipeline(tmp_path):
    """Transformer, VAE, both CLIPs and T5 in one file; the folder brings configurations and tokenizers alone."""
    pipe = tiny_family("sd3")
    weights = {f"model.diffusion_model.{key}": w for key, w in original_sd3(pipe.transformer.state_dict()).items()}
    weights |= original_vae(pipe.vae.state_dict(), len(pipe.vae.config.block_out_channels))
    for start, encoder in (("clip_l", pipe.text_encoder), ("clip_g", pipe.text_encoder_2)):
        for key, w in encoder.state_dict().items():
            name = key if "projection" in key else f"text_model.{key.removeprefix('text_model.')}"
            weights[f"text_encoders.{start}.transformer.{name}"] = w
    weights |= {f"text_encoders.t5xxl.transformer.{key}": w for key, w in pipe.text_encoder_3.state_dict().items()}
    save_file({key: w.contiguous().clone() for key, w in weights.items()}, tmp_path / "sd3.safetensors")
    found = load_pipeline(tmp_path / "sd3.safetensors", model_config=str(without_weights(pipe, tmp_path / "config")))
    assert torch.allclose(image_of(found), image_of(tiny_family("sd3")), atol=1e-5)
