"""The latents that a denoiser is trained on, by their mean and standard deviation.

Each function: (vae, pixels (B, 3, H, W) in [-1, 1]) -> moments (B, 2C, h, w), the means and behind them the deviations.
"""
import torch
import torch.nn.functional as F


def scaled_moments(vae, pixels):
    """As most VAEs' configurations scale them."""
    posterior = vae.encode(pixels).latent_dist
    return torch.cat([posterior.mean - (vae.config.get("shift_factor") or 0), posterior.std], 1) * vae.config.scaling_factor


def mode_moments(vae, pixels):
    """The same without the deviation, as diffusers' script for Z-Image has it."""
    return _certain(scaled_moments(vae, pixels).chunk(2, 1)[0])


def flux2_moments(vae, pixels):
    """Patches of 2 × 2 latents as channels, each normalised by what the VAE saw in its training; no deviation, as in diffusers'
    script."""
    patches = F.pixel_unshuffle(vae.encode(pixels).latent_dist.mode(), 2)
    mean, variance = (t.view(1, -1, 1, 1) for t in (vae.bn.running_mean, vae.bn.running_var))
    return _certain((patches - mean) / (variance + vae.config.batch_norm_eps).sqrt())


def qwen_moments(vae, pixels):
    """Of a video of one picture; each channel has a scale of its own."""
    posterior, config = vae.encode(pixels.unsqueeze(2)).latent_dist, vae.config
    mean, std = (torch.tensor(each).to(pixels).view(1, -1, 1, 1, 1) for each in (config.latents_mean, config.latents_std))
    return torch.cat([(posterior.mean - mean) / std, posterior.std / std], 1).squeeze(2)


def sana_moments(vae, pixels):
    """An autoencoder without a posterior."""
    return _certain(vae.encode(pixels).latent * vae.config.scaling_factor)


MOMENTS = {"AutoencoderKLFlux2": flux2_moments, "AutoencoderKLQwenImage": qwen_moments, "AutoencoderDC": sana_moments}


def mean_latents(vae, pixels):
    """Pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w) as a denoiser is trained on them, by the class of the VAE."""
    return MOMENTS.get(type(vae).__name__, scaled_moments)(vae, pixels).chunk(2, 1)[0]


def _certain(latents):
    """Latents (B, C, h, w) -> moments without deviation."""
    return torch.cat([latents, torch.zeros_like(latents)], 1)
