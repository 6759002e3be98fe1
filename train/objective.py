"""What the denoiser is asked for: noisy latents, the target, the loss of each sample. Pure.

    x_t = alpha_t x_0 + sigma_t noise      alpha_t = sqrt(alpha_bar_t), sigma_t = sqrt(1 - alpha_bar_t)     (DDPM, eq. 4)
"""
import torch.nn.functional as F

TARGETS = {  # diffusers' prediction_type -> target
    "epsilon": lambda x0, noise, alpha, sigma: noise,
    "v_prediction": lambda x0, noise, alpha, sigma: alpha * noise - sigma * x0,  # Salimans & Ho 2022, appendix D
    "sample": lambda x0, noise, alpha, sigma: x0,
}
MIN_SNR_DIVISOR = {  # Hang et al. 2023, section 3.4: min(snr, gamma) weighs the x_0 loss; over this, the loss on the target
    "epsilon": lambda snr: snr,
    "v_prediction": lambda snr: snr + 1,
    "sample": lambda snr: 1.0,
}


def rates(alphas_cumprod, timesteps):
    """-> alpha, sigma, each (B, 1, 1, 1)."""
    alpha_bar = alphas_cumprod[timesteps][:, None, None, None]
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def add_noise(x0, noise, alpha, sigma):
    return alpha * x0 + sigma * noise


def loss_per_sample(prediction, target):
    """Mean squared error -> (B,), in float32."""
    return F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)


def min_snr_weight(prediction_type, alpha, sigma, gamma):
    """-> (B,) weights of the losses; gamma 5 is the paper's."""
    snr = (alpha / sigma).square().flatten()
    return snr.clamp(max=gamma) / MIN_SNR_DIVISOR[prediction_type](snr)
