"""Models in diffusers' layout, from a folder or the hub: what is missing is said before anything is loaded."""
import json
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from rotescope.errors import InputError

BASE = Path(__file__).resolve().parent.parent / "train" / "base"
if not BASE.is_dir():  # a wheel holds the four folders inside the package
    BASE = Path(__file__).resolve().parent / "train" / "base"
LORA_FILE = "pytorch_lora_weights.safetensors"
PARTS = {  # component -> files of which it needs one of each group
    "unet": (("config.json",), ("*.safetensors",)),
    "vae": (("config.json",), ("*.safetensors",)),
    "text_encoder": (("config.json",), ("*.safetensors",)),
    "tokenizer": (("tokenizer_config.json",), ("tokenizer.json", "vocab.json")),
    "scheduler": (("scheduler_config.json",),),
}


def find_model(name):
    """A folder, or a model's name on the hub -> its folder, with every part of a StableDiffusionPipeline; else InputError."""
    folder = Path(name)
    if not folder.exists() and str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        folder = _download(name)
    if not (folder / "model_index.json").exists():
        raise InputError(f"no model at {name}: name a folder in diffusers' layout, with a model_index.json")
    kind = json.loads((folder / "model_index.json").read_text()).get("_class_name")
    if kind != "StableDiffusionPipeline":
        raise InputError(f"{name} is a {kind}: only a StableDiffusionPipeline is served so far")
    for part, groups in PARTS.items():
        for group in groups:
            if not any(True for pattern in group for _ in (folder / part).glob(pattern)):
                raise InputError(f"the model {name} has no {part} (no {' or '.join(group)} there): copy the whole model folder")
    return folder


def load_pipeline(name, lora=None):
    """-> StableDiffusionPipeline in float32 without safety checker, its parts frozen, in eval mode; `lora`: a file or folder."""
    folder, lora = find_model(name), find_lora(lora) if lora else None
    try:
        with quiet():
            pipe = StableDiffusionPipeline.from_pretrained(
                folder, torch_dtype=torch.float32, safety_checker=None, requires_safety_checker=False,
                use_safetensors=True, local_files_only=True)
            if lora:
                pipe.load_lora_weights(lora.parent, weight_name=lora.name, local_files_only=True)
    except Exception as error:  # a damaged file shows in as many ways as there are formats
        raise InputError(f"{lora or name} cannot be loaded ({error}): copy it again") from error
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).eval()
    return pipe


def find_lora(path):
    """A LoRA file, or the folder that holds pytorch_lora_weights.safetensors -> the file; else InputError."""
    file = Path(path) / LORA_FILE if Path(path).is_dir() else Path(path)
    if file.suffix != ".safetensors" or not file.is_file():
        raise InputError(f"no LoRA at {path}: name a .safetensors file, or a folder with {LORA_FILE}")
    return file


def portable_text_encoder(folder):
    """Rewrite a saved CLIPTextModel so that every transformers loads it: 5.0 wants the prefix that 5.23 leaves out, and takes
    the file's half precision for the model's unless the config says otherwise."""
    file, config = Path(folder) / "model.safetensors", Path(folder) / "config.json"
    weights = {name if name.startswith("text_model.") else f"text_model.{name}": w for name, w in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


def _download(name):
    try:
        return Path(DiffusionPipeline.download(name, use_safetensors=True))
    except Exception as error:  # no network, no such model, no safetensors: one kind each
        raise InputError(f"no model at {name}, and the hub does not give it ({error}): name a local folder") from error


@contextmanager
def quiet():
    """Without the libraries' own bars for loading and saving."""
    shown = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
