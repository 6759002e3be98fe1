"""What a training leaves: a model or a LoRA in Hugging Face's layout, and beside it what it was trained on and how."""
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from rotescope.common.errors import InputError
from rotescope.common.outputs import folder_sha256, sha256, versions, write_json
from rotescope.common.quiet_libraries import quiet
from rotescope.common.settings import plain, save
from rotescope.models.adapters.kohya_names import kohya_metadata, kohya_tensors
from rotescope.models.model_files import LORA_FILE
from rotescope.models.pipelines import portable_text_encoder

TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")  # of a CLIP text encoder that get a LoRA


def component_hashes(folder):
    """-> hashes of the whole model and of the parts that latents and embeddings depend on."""
    text = sorted(p for p in folder.iterdir() if p.name.startswith(("text_encoder", "tokenizer")))
    return {"base": folder_sha256(folder), "vae": folder_sha256(folder / "vae"), "text": "".join(map(folder_sha256, text))}


def add_lora(part, rank, alpha, layers):
    """LoRA on the layers whose names end so, started as in diffusers' scripts: A Gaussian, B zero."""
    try:
        part.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(layers)))
    except ValueError as error:
        if "PEFT" in str(error):  # transformers asks for a newer one than diffusers does
            raise InputError(f"no LoRA on the text encoder with this peft ({error}): install that, or, if it is not there yet, "
                             "pip install 'transformers<5.24'; or leave out --train_text_encoder") from error
        kind = type(part).__name__
        raise InputError(f"LoRA finds no layer {', '.join(layers)} in the {kind} ({error}): pass other --lora_layers") from error


def save_lora(job, folder):
    """The adapters with their ranks and alphas: `load_lora_weights` of a stock pipeline restores them.

    In kohya's format it restores the UNet's; a diffusers of 2026 fails on the text encoders' keys, which
    other programs read.
    """
    parts = dict(job.predictor.parts.items())
    if job.config.lora_format == "kohya":
        return _save_kohya(job, parts, folder)
    for about in (about for part in parts.values() for about in part.peft_config.values()):
        about.base_model_name_or_path = None  # transformers notes the folder on this machine, and it would go with the file
    layers = {f"{name}_lora_layers": _lora_layers(name, part) for name, part in parts.items()}
    with quiet():
        type(job.pipe).save_lora_weights(folder, **layers, **_collate_lora_metadata(parts))
    return Path(folder) / LORA_FILE


def _save_kohya(job, parts, folder):
    config, alphas = job.config, {name: next(iter(part.peft_config.values())).lora_alpha for name, part in parts.items()}
    tensors = kohya_tensors(job.pipe, {name: get_peft_model_state_dict(part) for name, part in parts.items()}, alphas)
    copies = Counter(e.copies for e in job.manifest)
    metadata = kohya_metadata(kohya_family(job.pipe), config.rank, alphas[job.denoiser], job.preprocessing.resolution,
                              copies if all(isinstance(n, int) for n in copies) else {}, _bucket_showings(job))
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(tensors, Path(folder) / LORA_FILE, metadata=metadata)
    return Path(folder) / LORA_FILE


def _bucket_showings(job):
    """-> {bucket: how many pictures of it an epoch shows, copies counted}."""
    shown = Counter()
    for example, shape in zip(job.manifest if job.shapes else (), job.shapes, strict=True):
        shown[shape] += example.copies
    return {shape: max(1, round(n)) for shape, n in shown.items()}


def kohya_family(pipe):
    """`sd1`, `sd2` or `sdxl`. InputError for a pipeline whose LoRAs are not written under kohya's names."""
    kind = type(pipe).__name__
    if kind not in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        raise InputError(f"--lora_format kohya is written for Stable Diffusion 1, 2 and XL, not {kind}: leave it out")
    if kind == "StableDiffusionXLPipeline":
        return "sdxl"
    return "sd2" if pipe.unet.config.cross_attention_dim == 1024 else "sd1"


def _lora_layers(name, part):
    """A denoiser's keep PEFT's names, which every loader reads. diffusers' older ones exist for attention alone, and where the
    first name of a UNet's file is an older one, its loader passes over those of all other layers."""
    layers = get_peft_model_state_dict(part)
    return convert_state_dict_to_diffusers(layers) if name.startswith("text_encoder") else layers


def save_full(job, folder, dtype=torch.float32):
    """The whole pipeline; `from_pretrained` of a stock pipeline loads it, in float32 unless told otherwise."""
    for part in (p for p in job.pipe.components.values() if isinstance(p, torch.nn.Module)):
        torch.nn.Module.to(part, dtype=dtype)  # diffusers' own `to` warns of parts that it would keep in float32, even if none
    with quiet():
        job.pipe.save_pretrained(folder, safe_serialization=True)
    for name, part in job.pipe.components.items():
        if isinstance(part, CLIPTextModel):
            portable_text_encoder(Path(folder) / name)
    return Path(folder) / job.denoiser


def save_trained(job, folder):
    """What is trained, as it is, in float32: a LoRA file or the model's own folder, each of which a stock pipeline loads."""
    if job.config.lora:
        save_lora(job, folder)
    else:
        job.pipe.components[job.denoiser].save_pretrained(Path(folder) / job.denoiser)


def load_trained(job, folder):
    """Take back what `save_trained` wrote of a full model."""
    files = sorted((Path(folder) / job.denoiser).glob("*.safetensors"))
    job.pipe.components[job.denoiser].load_state_dict({name: w for file in files for name, w in load_file(file).items()})


def save_record(folder, config, manifest, weights, about):
    """What was done: config.yaml (takes --config again), manifest.parquet with served counts, rotescope.json."""
    config = replace(config, hub_token=None)
    save(config, folder / "config.yaml")
    manifest.save(folder / "manifest.parquet")
    trained = folder_sha256(weights) if weights.is_dir() else sha256(weights)
    about["hashes"] = {**about["hashes"], "manifest": manifest.hash, "unet": trained}
    write_json(folder / "rotescope.json", {**about, "config": plain(config), "versions": versions()})
