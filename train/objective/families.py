"""The model families that can be trained: how each turns pictures into latents and captions into conditions, and asks its
denoiser for a prediction.

A condition is a dict of tensors alike in their first dimension: "text" (B, L, D), "mask" (B, L), which of its tokens count,
"pooled" (B, P), "geometry" (B, 6).
"""
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature

import torch
import torch.nn.functional as F
from diffusers import FluxPipeline
from torch.nn.utils.rnn import pad_sequence

from rotescope.models.vae_latents import flux2_moments, mode_moments, qwen_moments, sana_moments, scaled_moments


@dataclass(frozen=True)
class Family:
    denoiser: str                 # the component that is trained: "unet" or "transformer"
    encoders: tuple[str, ...]     # the components that a LoRA may train beside it
    encode: Callable              # (pipe, texts, device) -> condition, by the pipeline's own encode_prompt
    predict: Callable             # (denoiser, noisy (B, C, h, w), timesteps (B,), condition, guidance_scale) -> (B, C, h, w)
    moments: Callable = scaled_moments   # (vae, pixels (B, 3, H, W)) -> (B, 2C, h, w), of the latents that the denoiser sees
    lora_layers: tuple[str, ...] = ()    # that get a LoRA beside attention's usual ones, unless others are asked for
    some_unused: bool = False            # the loss leaves weights without a gradient: those after the last look at the text


def _encode_sd(pipe, texts, device):
    return {"text": pipe.encode_prompt(texts, device, 1, False)[0]}


def _encode_sdxl(pipe, texts, device):
    """The empty caption becomes what the pipeline takes for the unconditional branch: zeros, if it is configured so."""
    text, _, pooled, _ = pipe.encode_prompt(texts, device=device, do_classifier_free_guidance=False)
    if pipe.config.force_zeros_for_empty_prompt:
        empty = torch.tensor([t == "" for t in texts], device=device)
        text, pooled = text.masked_fill(empty[:, None, None], 0), pooled.masked_fill(empty[:, None], 0)
    return {"text": text, "pooled": pooled}


def _encode_sd3(pipe, texts, device):
    text, _, pooled, _ = pipe.encode_prompt(texts, texts, texts, device=device, do_classifier_free_guidance=False)
    return {"text": text, "pooled": pooled}


def _encode_flux(pipe, texts, device):
    text, pooled, _ = pipe.encode_prompt(texts, device=device)
    return {"text": text, "pooled": pooled}


def _predict_sd(denoiser, noisy, timesteps, condition, _):
    return denoiser(noisy, timesteps, condition["text"], return_dict=False)[0]


def _predict_sdxl(denoiser, noisy, timesteps, condition, _):
    added = {"text_embeds": condition["pooled"], "time_ids": condition["geometry"]}
    return denoiser(noisy, timesteps, condition["text"], added_cond_kwargs=added, return_dict=False)[0]


def _predict_sd3(denoiser, noisy, timesteps, condition, _):
    return denoiser(noisy, condition["text"], condition["pooled"], timesteps, return_dict=False)[0]


def _predict_flux(denoiser, noisy, timesteps, condition, guidance_scale):
    """Latents go in as a sequence of patches, each with its place; the timestep is a share of 1000."""
    out = denoiser(_patches(noisy), condition["text"], condition["pooled"], timesteps / 1000, *_flux_places(noisy, condition),
                   _guidance(denoiser, noisy, guidance_scale), return_dict=False)[0]
    return _unpatched(out, noisy)


# ----- what FLUX.1's relatives have in common

def _patches(noisy):
    """(B, C, h, w) -> (B, hw / 4, 4C), a token for each 2 × 2 latents."""
    return FluxPipeline._pack_latents(noisy, *noisy.shape)


def _unpatched(tokens, noisy):
    """The inverse, in the shape of `noisy`."""
    return FluxPipeline._unpack_latents(tokens, *noisy.shape[2:], vae_scale_factor=1)


def _flux_places(noisy, condition):
    """-> the places of the patches, (hw / 4, 3), and of the text's tokens, (L, 3)."""
    n, _, height, width = noisy.shape
    return (FluxPipeline._prepare_latent_image_ids(n, height // 2, width // 2, noisy.device, noisy.dtype),
            noisy.new_zeros(condition["text"].shape[1], 3))


def _guidance(denoiser, noisy, scale):
    """-> (B,) for a model that was distilled from guidance, else None."""
    return noisy.new_full((len(noisy),), scale) if denoiser.config.guidance_embeds else None


# ----- texts of several lengths

def _most_tokens(pipe):
    """That a text may have where a call of the pipeline does not say."""
    return signature(type(pipe).__call__).parameters["max_sequence_length"].default


def _filled(text, mask, length):
    """Embeddings (B, k, D) and their mask, filled up with zeros so that those of all captions stack."""
    missing = length - text.shape[1]
    return {"text": F.pad(text, (0, 0, 0, missing)), "mask": F.pad(mask, (0, missing)).float()}


def _trimmed(condition):
    """The inverse for a batch, as a pipeline has it: up to the longest text, and without a mask where every token counts."""
    mask = condition["mask"].bool()
    longest = int(mask.sum(1).max())
    return condition["text"][:, :longest], None if mask[:, :longest].all() else mask[:, :longest]


# ----- FLUX.2 klein

def _encode_flux2(pipe, texts, device):
    return {"text": pipe.encode_prompt(texts, device=device)[0]}


def _predict_flux2(denoiser, noisy, timesteps, condition, guidance_scale):
    """A token a patch; places have four coordinates: picture, row, column, token of the text."""
    from diffusers import Flux2KleinPipeline  # diffusers 0.36, the oldest that is taken, lacks it
    out = denoiser(noisy.flatten(2).mT, condition["text"], timesteps / 1000,
                   Flux2KleinPipeline._prepare_latent_ids(noisy).to(noisy.device),
                   Flux2KleinPipeline._prepare_text_ids(condition["text"]).to(noisy.device),
                   _guidance(denoiser, noisy, guidance_scale), return_dict=False)[0]
    return out.mT.unflatten(2, noisy.shape[2:])


FLUX2_LAYERS = ("to_qkv_mlp_proj", *(f"single_transformer_blocks.{i}.attn.to_out" for i in range(24)))  # as diffusers' script


# ----- Z-Image

def _encode_z_image(pipe, texts, device):
    embeddings, _ = pipe.encode_prompt([*texts], device, do_classifier_free_guidance=False)  # it writes into the list
    text = pad_sequence(embeddings, batch_first=True)
    lengths = torch.tensor([len(e) for e in embeddings], device=device)
    return _filled(text, torch.arange(text.shape[1], device=device) < lengths[:, None], _most_tokens(pipe))


def _predict_z_image(denoiser, noisy, timesteps, condition, _):
    """Lists of latents and of texts; the time runs from noise, 0, to data, 1, and the prediction points to data."""
    texts = [text[kept] for text, kept in zip(condition["text"], condition["mask"].bool(), strict=True)]
    out = denoiser(list(noisy.unsqueeze(2)), (1000 - timesteps) / 1000, texts, return_dict=False)[0]
    return -torch.stack(out).squeeze(2)


# ----- Qwen-Image

def _encode_qwen(pipe, texts, device):
    length = _most_tokens(pipe)
    text, mask = pipe.encode_prompt(texts, device, max_sequence_length=length)
    return _filled(text, text.new_ones(text.shape[:2]) if mask is None else mask, length)


def _predict_qwen(denoiser, noisy, timesteps, condition, guidance_scale):
    text, mask = _trimmed(condition)
    n, _, height, width = noisy.shape
    out = denoiser(_patches(noisy), text, mask, timesteps / 1000, [[(1, height // 2, width // 2)]] * n,
                   _guidance(denoiser, noisy, guidance_scale), return_dict=False)[0]
    return _unpatched(out, noisy)


# ----- Sana

def _encode_sana(pipe, texts, device):
    """A caption follows the instruction that a call of the pipeline puts before it; the unconditional branch has none."""
    instruction = signature(type(pipe).__call__).parameters["complex_human_instruction"].default
    text, mask, *_ = pipe.encode_prompt(texts, False, device=device, complex_human_instruction=instruction)
    empty = torch.tensor([t == "" for t in texts], device=device)
    if empty.any():
        text[empty], mask[empty], *_ = pipe.encode_prompt("", False, device=device)
    return {"text": text, "mask": mask.float()}


def _predict_sana(denoiser, noisy, timesteps, condition, _):
    out = denoiser(noisy, condition["text"], timesteps * denoiser.config.timestep_scale,
                   encoder_attention_mask=condition["mask"], return_dict=False)[0]
    return out[:, :noisy.shape[1]]  # a variance may follow


# ----- Chroma

def _encode_chroma(pipe, texts, device):
    text, _, mask, *_ = pipe.encode_prompt(texts, device=device, do_classifier_free_guidance=False)
    return {"text": text, "mask": mask}


def _predict_chroma(denoiser, noisy, timesteps, condition, _):
    """FLUX.1 without pooled text and guidance, and with a mask over text and picture."""
    patches, mask = _patches(noisy), condition["mask"]
    out = denoiser(patches, condition["text"], timesteps / 1000, *_flux_places(noisy, condition),
                   torch.cat([mask, mask.new_ones(patches.shape[:2])], 1), return_dict=False)[0]
    return _unpatched(out, noisy)


FAMILIES = {  # class of the pipeline -> family
    "StableDiffusionPipeline": Family("unet", ("text_encoder",), _encode_sd, _predict_sd),
    "StableDiffusionXLPipeline": Family("unet", ("text_encoder", "text_encoder_2"), _encode_sdxl, _predict_sdxl),
    "StableDiffusion3Pipeline": Family("transformer", ("text_encoder", "text_encoder_2"), _encode_sd3, _predict_sd3),
    "FluxPipeline": Family("transformer", ("text_encoder",), _encode_flux, _predict_flux),
    "Flux2KleinPipeline": Family("transformer", (), _encode_flux2, _predict_flux2, flux2_moments, FLUX2_LAYERS),
    "ZImagePipeline": Family("transformer", (), _encode_z_image, _predict_z_image, mode_moments),
    "QwenImagePipeline": Family("transformer", (), _encode_qwen, _predict_qwen, qwen_moments, some_unused=True),
    "SanaPipeline": Family("transformer", (), _encode_sana, _predict_sana, sana_moments),
    "ChromaPipeline": Family("transformer", (), _encode_chroma, _predict_chroma),
}


def family_of(pipe):
    return FAMILIES[type(pipe).__name__]


class Predictor(torch.nn.Module):
    """What is trained of a pipeline, as one module, so that processes share the gradients of all of it."""

    def __init__(self, pipe, trained, guidance_scale=1.0):
        super().__init__()
        self.parts = torch.nn.ModuleDict({name: pipe.components[name] for name in trained})
        self.pipe, self.family, self.guidance_scale = pipe, family_of(pipe), guidance_scale

    def forward(self, noisy, timesteps, condition, texts=None):
        """-> (B, C, h, w), what the denoiser predicts; captions are encoded here if a text encoder is trained."""
        if texts is not None:
            condition = condition | self.family.encode(self.pipe, texts, noisy.device)
        return self.family.predict(self.parts[self.family.denoiser], noisy, timesteps, condition, self.guidance_scale)
