"""Weights in few bits, or away from the device until their turn, by diffusers' own means; and what does not go with that.

The initial noise is drawn as ever: from the generators that a call is given, on their device.
"""
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import PipelineQuantizationConfig
from diffusers.hooks.group_offloading import GroupOffloadingHook, apply_group_offloading

from rotescope.common.console import say
from rotescope.common.errors import InputError
from rotescope.models.model_files import is_single_file, read_index

DENOISERS = ("unet", "transformer")
SMALL = "CLIP"  # how the classes of text encoders begin that stay as they are: they are small, and rounding shows


def check_memory(options: Any, device: str, folder: str | Path | None = None) -> None:
    """InputError, before anything is loaded, for MemoryOptions that this device or the model in `folder` cannot serve."""
    cpu = torch.device(device).type == "cpu"
    if options.offload == "model" and cpu:
        raise InputError("--offload model moves parts from main memory to a GPU, and there is none: leave it out")
    if options.offload == "group" and cpu:
        say("note: --offload group saves nothing on a CPU")
    if options.quantize != "none":
        check_quantizable(device, folder)


def check_quantizable(device: str, model: str | Path | None) -> None:
    """InputError where weights cannot be cut to 4 bits: without a GPU, of a single file, of weights that are so already."""
    if torch.device(device).type == "cpu":
        raise InputError("--quantize nf4 needs a GPU, and there is none: leave it out")
    if model and is_single_file(model):
        raise InputError(f"--quantize nf4 is for a folder in diffusers' layout, and {model} is a single file: name a folder, or "
                         "the same model as a GGUF, without --quantize")
    if model and (kind := stored_quantization(Path(model))):
        raise InputError(f"{model} is quantised already ({kind}): leave out --quantize")


def stored_quantization(folder: Path) -> str:
    """By which method the denoiser in a model's folder is quantised on disk; "" where it is not."""
    for part in DENOISERS:
        try:
            about = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(about, dict) and (told := about.get("quantization_config")):
            return str(told.get("quant_method", "unknown")) if isinstance(told, dict) else "unknown"
    return ""


def quantized_parts(folder: Path, kind: str) -> tuple[str, ...]:
    """Which components --quantize cuts to few bits: the denoiser, and the text encoders that are not CLIP's."""
    listed = {name: str(about[1]) for name, about in read_index(folder).items() if isinstance(about, list) and about[0]}
    return () if kind == "none" else tuple(name for name, its in listed.items() if name in DENOISERS or (
        name.startswith("text_encoder") and not its.startswith(SMALL)))


def quantization_config(parts: tuple[str, ...], dtype: torch.dtype) -> PipelineQuantizationConfig:
    """NF4 with doubly quantised scales (Dettmers et al. 2023, QLoRA, arXiv 2305.14314, section 3); products in `dtype`."""
    return PipelineQuantizationConfig(quant_backend="bitsandbytes_4bit", components_to_quantize=list(parts), quant_kwargs={
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype})


def place_pipeline(pipe: Any, device: str, options: Any) -> Any:
    """A pipeline, its adapters attached -> the same where it is to run, as MemoryOptions say. InputError for what it lacks."""
    for name, has in (("slicing", "use_slicing"), ("tiling", "use_tiling")):
        if getattr(options, f"vae_{name}"):
            if not hasattr(pipe.vae, has):
                raise InputError(f"--vae_{name}: {type(pipe.vae).__name__} has none: leave it out")
            getattr(pipe.vae, f"enable_{name}")()
    if options.attention_slicing:
        if not hasattr(getattr(pipe, "unet", None), "set_attention_slice"):
            raise InputError(f"--attention_slicing is for UNets, and {type(pipe).__name__} has none: leave it out")
        pipe.enable_attention_slicing()
    if options.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif options.offload == "group":
        _offload_groups(pipe, torch.device(device))
    else:
        pipe.to(device)
    return pipe


def _offload_groups(pipe, device):
    """The denoiser block by block; other parts layer by layer, since pipelines call them by more than their `forward`. Without a
    stream: its pinned copies would not follow adapters that are switched off."""
    blocks, layers = {"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}
    for name, part in ((name, part) for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)):
        offload = getattr(part, "enable_group_offload", partial(apply_group_offloading, part))
        try:
            offload(onload_device=device, offload_device=torch.device("cpu"), **(blocks if name in DENOISERS else layers))
        except ValueError as error:
            raise InputError(f"--offload group: {type(part).__name__} does not take it: take --offload model") from error


# ----- what a part is like

def is_offloaded(part: torch.nn.Module) -> bool:
    """Whether its weights come to the device only when the whole of it, or a block, is called."""
    return hasattr(part, "_hf_hook") or has_offloaded_blocks(part)


def has_offloaded_blocks(part: torch.nn.Module) -> bool:
    """Whether blocks of it leave the device as soon as they have run: by group offloading, or accelerate's sequential one."""
    registries = (getattr(module, "_diffusers_hook", None) for module in part.modules())
    return any(isinstance(hook, GroupOffloadingHook) for found in registries if found for hook in found.hooks.values()) or any(
        hasattr(module, "_hf_hook") for module in part.modules() if module is not part)


def is_quantized(part: torch.nn.Module) -> bool:
    """Whether some of its weights are packed into few bits."""
    return getattr(part, "hf_quantizer", None) is not None


def has_fused_projections(part: torch.nn.Module) -> bool:
    """Whether query, key and value come from one layer: those of their own are there still, and are not called."""
    return any(getattr(module, "fused_projections", False) for module in part.modules())


def check_differentiable(parts: dict[str, torch.nn.Module], what: str) -> None:
    """InputError for parts through which no gradient comes back: a block's weights have left before they are asked for again."""
    if name := next((name for name, part in parts.items() if has_offloaded_blocks(part)), None):
        raise InputError(f"{what} differentiates the {name}, whose blocks are offloaded one by one: take --offload model or none")
