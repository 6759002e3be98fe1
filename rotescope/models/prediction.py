"""What a denoiser predicts: ε, v, x₀ or the velocity of flow matching, and how each becomes another. Pure.

    x_t = α x₀ + σ ε
    diffusion        α = √ᾱ_t,    σ = √(1 − ᾱ_t)      (Ho et al. 2020, arXiv 2006.11239, eq. 4)
    flow matching    α = 1 − σ,   σ = t / T           (Esser et al. 2024, arXiv 2403.03206, eq. 13)

A kind is diffusers' prediction_type (`epsilon`, `v_prediction`, `sample`), or `flow`. α and σ are numbers, or
tensors that broadcast to the latents (B, C, h, w).
"""
import torch

TARGETS = {  # kind -> what the denoiser is asked for
    "epsilon": lambda x0, noise, alpha, sigma: noise,
    "v_prediction": lambda x0, noise, alpha, sigma: alpha * noise - sigma * x0,  # Salimans & Ho 2022, app. D
    "sample": lambda x0, noise, alpha, sigma: x0,
    "flow": lambda x0, noise, alpha, sigma: noise - x0,                          # Esser et al. 2024: d x_t / d σ
}


# ----- where a timestep lies

def prediction_kind(scheduler):
    """A diffusers scheduler -> what its denoiser predicts, a key of TARGETS or another prediction_type."""
    kind = scheduler.config.get("prediction_type", "epsilon")
    return "flow" if kind == "flow_prediction" or "FlowMatch" in type(scheduler).__name__ else kind


def diffusion_rates(alpha_bar):
    """ᾱ, a number or a tensor -> (α, σ)."""
    return alpha_bar ** 0.5, (1 - alpha_bar) ** 0.5


def rates_at(scheduler, timestep):
    """A diffusers scheduler and a timestep (0…999, whole or not) -> (α, σ), two floats."""
    if prediction_kind(scheduler) == "flow":
        sigma = timestep / scheduler.config.num_train_timesteps
        return 1 - sigma, sigma
    return diffusion_rates(scheduler.alphas_cumprod[int(timestep)].item())


def noisy_latents(x0, noise, alpha, sigma):
    """x_t = α x₀ + σ ε."""
    return alpha * x0 + sigma * noise


# ----- from an output to ε and x₀

def eps_slope(kind, alpha, sigma):
    """∂ε/∂output at a fixed x_t: a difference of two outputs times this is the difference of the two ε."""
    if kind == "epsilon":
        return 1.0
    if kind in ("v_prediction", "flow"):
        return alpha               # ε = α v + σ x_t, and ε = x_t + (1 − σ) u under flow matching
    return -alpha / sigma          # ε = (x_t − α x₀) / σ


def eps_of(kind, output, x, alpha, sigma):
    """A denoiser's output at x_t -> ε."""
    if kind == "epsilon":
        return output
    slope = eps_slope(kind, alpha, sigma)
    if kind == "v_prediction":
        return slope * output + sigma * x
    return x + slope * output if kind == "flow" else x / sigma + slope * output


def clean_of(kind, output, x, alpha, sigma):
    """A denoiser's output at x_t -> x₀, the clean latents that it points at."""
    if kind == "epsilon":
        return (x - sigma * output) / alpha
    if kind == "v_prediction":
        return alpha * x - sigma * output
    return x - sigma * output if kind == "flow" else output


# ----- the same by scheduler and timestep

def slope_at(scheduler, timestep):
    """∂ε/∂output at a timestep, a float: see eps_slope."""
    kind = prediction_kind(scheduler)
    return 1.0 if kind == "epsilon" else eps_slope(kind, *rates_at(scheduler, timestep))


def eps_at(scheduler, output, x, timestep):
    """A denoiser's output at x_t -> ε, in fp32 or more: (n, C, h, w), (n, C, h, w) -> (n, C, h, w)."""
    output, kind = output.to(torch.promote_types(output.dtype, torch.float32)), prediction_kind(scheduler)
    return output if kind == "epsilon" else eps_of(kind, output, x, *rates_at(scheduler, timestep))
