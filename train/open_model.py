"""Models of every family that can be trained, from a folder or the hub: what is missing is said before anything is loaded."""
import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from rotescope.errors import InputError
from rotescope.models import _download, find_model, load_pipeline, quiet
from rotescope.train.families import FAMILIES

WEIGHTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")


def find_any(name):
    """A folder, or a model's name on the hub -> its folder, with every part that its model_index.json names; else InputError."""
    folder = Path(name)
    if not folder.exists() and str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        folder = _download(name)
    kind = _kind(folder)
    if kind in (None, "StableDiffusionPipeline"):
        return find_model(folder if folder.exists() else name)
    if kind not in FAMILIES:
        raise InputError(f"{name} is a {kind}: training knows {', '.join(FAMILIES)}")
    index = json.loads((folder / "model_index.json").read_text())
    for part in (p for p in WEIGHTS if (index.get(p) or [None])[0] is not None):
        for needed in ("config.json", "*.safetensors"):
            if not list((folder / part).glob(needed)):
                raise InputError(f"the model {name} has no {part} (no {needed} there): copy the whole model folder")
    return folder


def _kind(folder):
    try:
        return json.loads((folder / "model_index.json").read_text()).get("_class_name")
    except (OSError, ValueError):
        return None


def load_any(folder):
    """-> the pipeline in float32, its parts frozen, in eval mode."""
    if _kind(folder) == "StableDiffusionPipeline":
        return load_pipeline(folder)
    try:
        with quiet():
            pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True,
                                                     local_files_only=True)
    except Exception as error:  # a damaged file shows in as many ways as there are formats
        raise InputError(f"{folder} cannot be loaded ({error}): copy it again") from error
    for part in (p for p in pipe.components.values() if isinstance(p, torch.nn.Module)):
        part.requires_grad_(False).eval()
    return pipe
