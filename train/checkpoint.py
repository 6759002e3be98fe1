"""Models in and out of folders in Hugging Face's layout, with what was trained on and how beside them."""
import json
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from diffusers.utils import logging as diffusers_logging
from peft import LoraConfig, get_peft_model_state_dict
from transformers.utils import logging as transformers_logging

from rotescope.errors import InputError
from rotescope.runs import folder_sha256, sha256, versions, write_json
from rotescope.settings import plain, save

LORA_FILE = "pytorch_lora_weights.safetensors"
PARTS = {  # component -> files of which it needs one of each group
    "unet": (("config.json",), ("*.safetensors",)),
    "vae": (("config.json",), ("*.safetensors",)),
    "text_encoder": (("config.json",), ("*.safetensors",)),
    "tokenizer": (("tokenizer_config.json",), ("tokenizer.json", "vocab.json")),
    "scheduler": (("scheduler_config.json",),),
}


def find_model(name):
    """A folder, or the name of a model on the hub -> its folder, with every part that training needs; else InputError."""
    folder = Path(name)
    if not folder.exists() and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        folder = _download(name)
    if not (folder / "model_index.json").exists():
        raise InputError(f"no model at {name}: name a folder in diffusers' layout, with a model_index.json")
    kind = json.loads((folder / "model_index.json").read_text()).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise InputError(f"{name} is a {kind}: only a StableDiffusionPipeline can be fine-tuned")
    for part, groups in PARTS.items():
        for group in groups:
            if not any(True for pattern in group for _ in (folder / part).glob(pattern)):
                raise InputError(f"the model {name} has no {part} (no {' or '.join(group)} there): copy the whole model folder")
    return folder


def _download(name):
    try:
        return Path(DiffusionPipeline.download(name, use_safetensors=True))
    except Exception as error:  # no network, no such model, no safetensors: one kind each
        raise InputError(f"no model at {name}, and the hub does not give it ({error}): name a local folder") from error


def load_pipeline(folder):
    """-> StableDiffusionPipeline in float32 without its safety checker, all parts frozen and in eval mode."""
    try:
        with _quiet():
            pipe = StableDiffusionPipeline.from_pretrained(
                folder, torch_dtype=torch.float32, safety_checker=None, requires_safety_checker=False,
                use_safetensors=True, local_files_only=True)
    except Exception as error:  # a damaged file shows in as many ways as there are formats
        raise InputError(f"the model {folder} cannot be loaded ({error}): copy it again") from error
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).eval()
    return pipe


@contextmanager
def _quiet():
    """Without the libraries' own bars for loading and saving."""
    shown = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def component_hashes(folder):
    """-> hashes of the whole model and of the parts that latents and embeddings depend on."""
    return {"base": folder_sha256(folder), "vae": folder_sha256(folder / "vae"),
            "text": folder_sha256(folder / "text_encoder") + folder_sha256(folder / "tokenizer")}


def add_lora(unet, rank, alpha, layers):
    """LoRA on the layers whose names end so, in peft's own start: A Gaussian, B zero."""
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
    with _quiet():
        pipe.save_pretrained(folder, safe_serialization=True)
    text = Path(folder) / "text_encoder" / "config.json"  # transformers would load half precision by default, diffusers would not
    write_json(text, json.loads(text.read_text()) | {"dtype": "float32"})
    return Path(folder) / "unet"


def save_record(folder, config, manifest, weights, about):
    """What was done: config.yaml (takes --config again), manifest.parquet with served counts, rotescope.json."""
    save(config, folder / "config.yaml")
    manifest.save(folder / "manifest.parquet")
    trained = folder_sha256(weights) if weights.is_dir() else sha256(weights)
    about["hashes"] = {**about["hashes"], "manifest": manifest.hash, "unet": trained}
    write_json(folder / "rotescope.json", {**about, "config": plain(config), "versions": versions()})
