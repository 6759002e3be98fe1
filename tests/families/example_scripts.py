"""What diffusers' example scripts make of pictures and captions, written plainly, one pair of functions a family.

Latents: (pipe, pixels (B, 3, H, W), noise of the posterior) -> (B, C, h, w). Output: (pipe, noisy, timesteps, captions) -> what
the loss compares with noise - latents.
"""
import inspect

import torch
from diffusers import ChromaPipeline, Flux2KleinPipeline, QwenImagePipeline, SanaPipeline


def klein_latents(pipe, pixels, _):
    """train_dreambooth_lora_flux2_klein.py"""
    bn, latents = pipe.vae.bn, Flux2KleinPipeline._patchify_latents(pipe.vae.encode(pixels).latent_dist.mode())
    mean, std = bn.running_mean.view(1, -1, 1, 1), torch.sqrt(bn.running_var.view(1, -1, 1, 1) + pipe.vae.config.batch_norm_eps)
    return (latents - mean) / std


def klein_output(pipe, noisy, timesteps, captions):
    text, text_ids = pipe.encode_prompt(captions, device="cpu")
    ids = Flux2KleinPipeline._prepare_latent_ids(noisy)
    out = pipe.transformer(hidden_states=Flux2KleinPipeline._pack_latents(noisy), timestep=timesteps / 1000, guidance=None,
                           encoder_hidden_states=text, txt_ids=text_ids, img_ids=ids).sample
    return Flux2KleinPipeline._unpack_latents_with_ids(out, ids)


def z_image_latents(pipe, pixels, _):
    """train_dreambooth_lora_z_image.py"""
    return (pipe.vae.encode(pixels).latent_dist.mode() - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor


def z_image_output(pipe, noisy, timesteps, captions):
    texts, _ = pipe.encode_prompt(list(captions), device="cpu", do_classifier_free_guidance=False)
    out = pipe.transformer(list(noisy.unsqueeze(2).unbind(0)), (1000 - timesteps) / 1000, texts, return_dict=False)[0]
    return -torch.stack(out, 0).squeeze(2)


def qwen_latents(pipe, pixels, noise):
    """train_dreambooth_lora_qwen_image.py"""
    mean = torch.tensor(pipe.vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = 1.0 / torch.tensor(pipe.vae.config.latents_std).view(1, -1, 1, 1, 1)
    posterior = pipe.vae.encode(pixels.unsqueeze(2)).latent_dist
    return ((posterior.mean + posterior.std * noise.unsqueeze(2) - mean) * std)[:, :, 0]


def qwen_output(pipe, noisy, timesteps, captions):
    text, mask = pipe.encode_prompt(captions, device="cpu")
    n, channels, height, width = noisy.shape
    packed = QwenImagePipeline._pack_latents(noisy, n, channels, height, width)
    out = pipe.transformer(hidden_states=packed, encoder_hidden_states=text, encoder_hidden_states_mask=mask,
                           timestep=timesteps / 1000, img_shapes=[(1, height // 2, width // 2)] * n).sample
    return QwenImagePipeline._unpack_latents(out, 2 * height, 2 * width, pipe.vae_scale_factor)[:, :, 0]


def sana_latents(pipe, pixels, _):
    """train_dreambooth_lora_sana.py"""
    return pipe.vae.encode(pixels).latent * pipe.vae.config.scaling_factor


def sana_output(pipe, noisy, timesteps, captions):
    """With the instruction that a call of the pipeline has by default, and the script as an option."""
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    assert len(instruction) > 5
    text, mask, _, _ = pipe.encode_prompt(captions, device="cpu", complex_human_instruction=instruction)
    return pipe.transformer(hidden_states=noisy, encoder_hidden_states=text, encoder_attention_mask=mask,
                            timestep=timesteps).sample


def chroma_latents(pipe, pixels, noise):
    """train_dreambooth_lora_flux.py, of which Chroma is a relative; diffusers has no script of its own for it."""
    posterior = pipe.vae.encode(pixels).latent_dist
    return (posterior.mean + posterior.std * noise - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor


def chroma_output(pipe, noisy, timesteps, captions):
    text, text_ids, mask, *_ = pipe.encode_prompt(captions, device="cpu", do_classifier_free_guidance=False)
    n, channels, height, width = noisy.shape
    packed = ChromaPipeline._pack_latents(noisy, n, channels, height, width)
    out = pipe.transformer(
        hidden_states=packed, timestep=timesteps / 1000, encoder_hidden_states=text, txt_ids=text_ids,
        img_ids=ChromaPipeline._prepare_latent_image_ids(n, height // 2, width // 2, "cpu", torch.float32),
        attention_mask=pipe._prepare_attention_mask(n, packed.shape[1], torch.float32, mask)).sample
    return ChromaPipeline._unpack_latents(out, 2 * height, 2 * width, pipe.vae_scale_factor)


SCRIPTS = {"flux2-klein": (klein_latents, klein_output), "z-image": (z_image_latents, z_image_output),
           "qwen-image": (qwen_latents, qwen_output), "sana": (sana_latents, sana_output),
           "chroma": (chroma_latents, chroma_output)}
