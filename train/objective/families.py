"""The model families that can be trained: how each turns captions into conditions, and asks its denoiser for a prediction.

A condition is a dict of tensors alike in their first dimension: "text" (B, L, D), "pooled" (B, P), "geometry" (B, 6).
"""
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import FluxPipeline


@dataclass(frozen=True)
class Family:
    denoiser: str                 # the component that is trained: "unet" or "transformer"
    encoders: tuple[str, ...]     # the components that a LoRA may train beside it
    encode: Callable              # (pipe, texts, device) -> condition, by the pipeline's own encode_prompt
    predict: Callable             # (denoiser, noisy (B, C, h, w), timesteps (B,), condition, guidance_scale) -> (B, C, h, w)


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
    """Latents go in as a sequence of 2 × 2 patches, (B, hw / 4, 4C), each with its place; the timestep is a share of 1000."""
    n, channels, height, width = noisy.shape
    packed, at = FluxPipeline._pack_latents(noisy, n, channels, height, width), {"device": noisy.device, "dtype": noisy.dtype}
    out = denoiser(packed, condition["text"], condition["pooled"], timesteps / 1000,
                   FluxPipeline._prepare_latent_image_ids(n, height // 2, width // 2, **at),
                   torch.zeros(condition["text"].shape[1], 3, **at),
                   torch.full((n,), guidance_scale, **at) if denoiser.config.guidance_embeds else None, return_dict=False)[0]
    return FluxPipeline._unpack_latents(out, height, width, vae_scale_factor=1)


FAMILIES = {  # class of the pipeline -> family
    "StableDiffusionPipeline": Family("unet", ("text_encoder",), _encode_sd, _predict_sd),
    "StableDiffusionXLPipeline": Family("unet", ("text_encoder", "text_encoder_2"), _encode_sdxl, _predict_sdxl),
    "StableDiffusion3Pipeline": Family("transformer", ("text_encoder", "text_encoder_2"), _encode_sd3, _predict_sd3),
    "FluxPipeline": Family("transformer", ("text_encoder",), _encode_flux, _predict_flux),
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
