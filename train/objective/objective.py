"""The noise levels that a denoiser is trained on, and the loss of each sample. Pure.

Targets and conversions stand in rotescope/models/prediction.py.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from rotescope.models.prediction import diffusion_rates, prediction_kind

SYMMETRIC = "symmetric_exponential"
MIN_SNR_DIVISOR = {  # Hang et al. 2023, section 3.4: min(snr, gamma) weighs the x_0 loss; over this, the loss on the target
    "epsilon": lambda snr: snr,
    "v_prediction": lambda snr: snr + 1,
    "sample": lambda snr: 1.0,
}


@dataclass(frozen=True)
class NoiseSchedule:
    """The T noise levels that a model is trained on, and what it is trained to predict."""
    alpha: torch.Tensor      # (T,)
    sigma: torch.Tensor      # (T,)
    timesteps: torch.Tensor  # (T,) as the model is told them
    target: str              # what the model predicts: a key of prediction.TARGETS

    def __len__(self):
        return len(self.timesteps)

    def rates(self, levels):
        """levels: (B,) from 0 to T - 1 -> alpha, sigma, each (B, 1, 1, 1)."""
        return self.alpha[levels][:, None, None, None], self.sigma[levels][:, None, None, None]


def noise_schedule(scheduler):
    """That of the training behind a pipeline's scheduler."""
    if prediction_kind(scheduler) == "flow":
        flow = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
        return NoiseSchedule(1 - flow.sigmas, flow.sigmas, flow.timesteps, "flow")
    ddpm = DDPMScheduler.from_config(scheduler.config)
    alpha, sigma = diffusion_rates(ddpm.alphas_cumprod)
    return NoiseSchedule(alpha, sigma, torch.arange(len(alpha)), ddpm.config.prediction_type)


def draw_levels(schedule, scheme="none", logit_mean=0.0, logit_std=1.0, mode_scale=1.29, exponential_scale=4.0):
    """-> (size, generator) -> (size,) levels: uniform for diffusion, by the scheme's density for flow matching (Esser, 3.1)."""
    def uniform(size, generator):
        return torch.randint(len(schedule), (size,), generator=generator)

    def dense(size, generator):
        share = symmetric_exponential(size, exponential_scale, generator) if scheme == SYMMETRIC else \
            compute_density_for_timestep_sampling(scheme, size, logit_mean, logit_std, mode_scale, generator=generator)
        return (share * len(schedule)).long().clamp(0, len(schedule) - 1)
    return dense if schedule.target == "flow" else uniform


def symmetric_exponential(size, scale, generator):
    """-> (size,) shares u of the levels with the density ∝ e^(scale · u) + e^(scale · (1 − u)), a U: Lee et al. 2024, "Improving
    the Training of Rectified Flows", arXiv 2405.20320, whose scale is 4. Rao and Moyer 2026, arXiv 2603.13421, report that a
    symmetric exponential density makes rectified flow memorize less (after their abstract, which names no scale)."""
    rising = torch.log1p(torch.rand(size, generator=generator) * math.expm1(scale)) / scale   # by the inverse of its integral
    return torch.where(torch.rand(size, generator=generator) < 0.5, rising, 1 - rising)


def loss_per_sample(prediction, target, weight=None):
    """Mean squared error -> (B,), in float32; weight: (B, 1, h, w) of each place, over all of which the mean goes."""
    squares = F.mse_loss(prediction.float(), target.float(), reduction="none")
    return (squares if weight is None else squares * weight).flatten(1).mean(1)


def min_snr_weight(prediction_type, alpha, sigma, gamma):
    """-> (B,) weights of the losses; gamma 5 is the paper's."""
    snr = (alpha / sigma).square().flatten()
    return snr.clamp(max=gamma) / MIN_SNR_DIVISOR[prediction_type](snr)


def flow_weight(scheme, sigma):
    """-> (B,) weights of the losses of flow matching (Esser et al. 2024, section 3.1)."""
    return compute_loss_weighting_for_sd3(scheme, sigma.flatten())
