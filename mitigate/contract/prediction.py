"""The two predictions of a step: what is read off them, and how guidance mixes them. See models/prediction.py."""
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


def differs(prediction, other):
    """Which of n predictions (n, …) are not the other (n, …), rounding aside -> bool (n,)."""
    size, distance = (x.abs().flatten(1).amax(1) for x in (other, prediction - other))
    return distance > torch.finfo(other.dtype).eps * size


def combine(eps_cond, eps_uncond, scale):
    """(n, …), (n, …), scale (n,) -> guided prediction (n, …). The same mix in ε, v and x₀ space.

    Rounded as a pipeline rounds `uncond + s * (cond − uncond)` with a number s: in half precision the product is taken in fp32.
    """
    dtype = torch.promote_types(eps_cond.dtype, torch.float32)
    scale = scale.to(eps_cond.device, dtype).view(-1, *[1] * (eps_cond.dim() - 1))
    return eps_uncond + (scale * (eps_cond - eps_uncond).to(dtype)).to(eps_cond.dtype)
