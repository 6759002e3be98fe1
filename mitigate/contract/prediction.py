"""Signals read off the two predictions of a step."""
import torch


def prediction_gap(cond, uncond, factor=1.0):
    """‖eps_cond − eps_uncond‖₂ of each image: (n, …), (n, …) -> (n,) in fp32. `factor` turns the output's unit into ε."""
    return factor * (cond - uncond).float().flatten(1).norm(dim=1)


def noise_part(output, sample):
    """The predicted noise of a denoiser's output: PixArt and its kin put a learned variance behind it, as many channels again."""
    learned_variance = output.dim() == sample.dim() == 4 and output.shape[1] == 2 * sample.shape[1]
    return output[:, :sample.shape[1]] if learned_variance else output


def latent_part(sample, output):
    """The latents in what a denoiser sees: inpainting UNets and their kin are given a mask and a picture behind them."""
    return sample[:, :output.shape[1]] if output.dim() == sample.dim() == 4 else sample


def eps_factor(scheduler, timestep):
    """‖Δε‖ per unit of ‖Δoutput‖ at a timestep.

    1 for ε; α for v (ε = αv + σx); α/σ for x₀ (ε = (x − αx₀)/σ); 1 − σ for flow matching (x = (1 − σ)x₀ + σε, v = ε − x₀).
    """
    if scheduler.config.get("prediction_type") == "flow_prediction" or "FlowMatch" in type(scheduler).__name__:
        return 1 - timestep / scheduler.config.num_train_timesteps
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind == "epsilon":
        return 1.0
    alpha_bar = scheduler.alphas_cumprod[int(timestep)].item()
    return alpha_bar ** 0.5 if kind == "v_prediction" else (alpha_bar / (1 - alpha_bar)) ** 0.5


def combine(eps_cond, eps_uncond, scale):
    """(n, …), (n, …), scale (n,) -> guided prediction (n, …). The same mix in ε, v and x₀ space.

    Rounded as a pipeline rounds `uncond + s * (cond − uncond)` with a number s: in half precision the product is taken in fp32.
    """
    dtype = torch.promote_types(eps_cond.dtype, torch.float32)
    scale = scale.to(eps_cond.device, dtype).view(-1, *[1] * (eps_cond.dim() - 1))
    return eps_uncond + (scale * (eps_cond - eps_uncond).to(dtype)).to(eps_cond.dtype)
