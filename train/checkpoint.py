"""What a training leaves: a model or a LoRA in Hugging Face's layout, and beside it what it was trained on and how."""
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict

from rotescope.errors import InputError
from rotescope.models import LORA_FILE, portable_text_encoder, quiet
from rotescope.runs import folder_sha256, sha256, versions, write_json
from rotescope.settings import plain, save


def component_hashes(folder):
    """-> hashes of the whole model and of the parts that latents and embeddings depend on."""
    return {"base": folder_sha256(folder), "vae": folder_sha256(folder / "vae"),
            "text": folder_sha256(folder / "text_encoder") + folder_sha256(folder / "tokenizer")}


def add_lora(unet, rank, alpha, layers):
    """LoRA on the layers whose names end so, started as in diffusers' scripts: A Gaussian, B zero."""
    try:
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(layers)))
    except ValueError as error:
        raise InputError(f"LoRA finds no layer {', '.join(layers)} in the UNet ({error}): pass other --lora_layers") from error


def save_lora(unet, folder):
    """The adapter with its rank and alpha in the file's metadata: `load_lora_weights` of any diffusers pipeline restores both."""
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, **_collate_lora_metadata({"unet": unet}))
    return Path(folder) / LORA_FILE


def save_full(pipe, folder, dtype=torch.float32):
    """The whole pipeline; `StableDiffusionPipeline.from_pretrained` loads it, in float32 unless told otherwise."""
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        torch.nn.Module.to(part, dtype=dtype)  # diffusers' own `to` warns of parts that it would keep in float32, even if none
    with quiet():
        pipe.save_pretrained(folder, safe_serialization=True)
    portable_text_encoder(Path(folder) / "text_encoder")
    return Path(folder) / "unet"


def save_record(folder, config, manifest, weights, about):
    """What was done: config.yaml (takes --config again), manifest.parquet with served counts, rotescope.json."""
    save(config, folder / "config.yaml")
    manifest.save(folder / "manifest.parquet")
    trained = folder_sha256(weights) if weights.is_dir() else sha256(weights)
    about["hashes"] = {**about["hashes"], "manifest": manifest.hash, "unet": trained}
    write_json(folder / "rotescope.json", {**about, "config": plain(config), "versions": versions()})
