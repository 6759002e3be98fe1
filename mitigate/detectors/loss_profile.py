"""How well a denoiser puts pictures back at five levels of noise, with their caption and without: ten signals of each picture.

Of one picture they say little; of a set, evaluate/statistics/set_inference.py tells by them whether it was used in training.
They are the "multiple loss" of CDI (Dubiński et al., CVPR 2025, arXiv 2411.12858), with the caption and without. CDI's other
signals, gradient masking and noise optimisation, want gradients through the denoiser and are left out.
"""
import numpy as np
import torch

from rotescope.common.errors import InputError
from rotescope.mitigate.adapters.compatibility import check_scheduler
from rotescope.mitigate.contract.families import why_one_branch
from rotescope.mitigate.contract.text_inputs import TEXT_INPUTS
from rotescope.mitigate.denoiser.branch_loss import why_no_loss
from rotescope.mitigate.denoiser.first_step import at_least_float
from rotescope.mitigate.detectors.training_image_recall import caption_losses
from rotescope.mitigate.sampling.encoded_texts import EncodedTexts
from rotescope.mitigate.sampling.jobs import calls_of, noise_seed

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)   # of the schedule


def check_profiled_family(what, kind, distilled=False):
    """InputError for a pipeline's class, its family and whether it is distilled, where the two losses are not known: before
    anything is loaded."""
    if kind not in TEXT_INPUTS:
        raise InputError(f"{what} is of none of the families whose loss is known: take a model of {', '.join(TEXT_INPUTS)}")
    if why := why_one_branch(kind, distilled):
        raise InputError(f"the errors with and without a caption are compared, and {what} does not compute both: {why}")


def profile_timesteps(pipe) -> list[int]:
    """At 10, 30, 50, 70 and 90 % of the schedule; under flow matching σ = timestep / 1000."""
    return [round(share * pipe.scheduler.config.num_train_timesteps) for share in SHARES]


def signal_names(timesteps) -> list[str]:
    """What the columns of loss_profiles are called."""
    return [f"log_error_{branch}_{t}" for branch in ("caption", "no_caption") for t in timesteps]


@torch.no_grad()
def loss_profiles(pipe, examples, *, n=4, seed=1000, batch_size=64, on_picture=None):
    """Examples with captions -> (pictures, 10) float64: ln of the mean square error at each timestep, averaged over n noises,
    under the first caption, then without.

    All pictures meet the same noises, which `seed` draws; the batch around a picture changes nothing. InputError for a pipeline
    whose loss, with and without a caption, is not known.
    """
    if why := why_no_loss(pipe):
        raise InputError(f"the loss of a denoiser is asked for: {why}")
    check_scheduler(pipe.scheduler)
    timesteps, kept, found = profile_timesteps(pipe), EncodedTexts(), []
    for start in range(0, len(examples), batch_size):
        numbered = [(i, seed) for i in range(start, min(start + batch_size, len(examples)))]
        for together in calls_of(pipe, numbered):
            some = [examples[i] for i, _ in together]
            found.append(_profiles(pipe, some, timesteps, [seed + k for k in range(n)], kept))
            for _ in some if on_picture else ():
                on_picture()
    return np.concatenate(found) if found else np.zeros((0, 2 * len(SHARES)))


def _profiles(pipe, examples, timesteps, seeds, kept):
    """Pictures of one call -> (pictures, 10)."""
    latents, losses = caption_losses(pipe, [e.captions[0] for e in examples], [e.open() for e in examples], kept)
    latents, without_first = at_least_float(latents), []
    for loss in losses:
        for t in timesteps:
            times = torch.full((len(examples),), t, device=latents.device)
            errors = [loss(latents, _noise(latents, t, seed), times).double() for seed in seeds]
            without_first.append((sum(errors) / len(errors)).log())
    captioned_first = without_first[len(timesteps):] + without_first[:len(timesteps)]
    return torch.stack(captioned_first, 1).cpu().numpy()


def _noise(latents, timestep, seed):
    """The same for every picture (n, C, h, w), another for each timestep and seed."""
    generator = torch.Generator().manual_seed(noise_seed(f"timestep {timestep}", seed))
    return torch.randn(latents.shape[1:], generator=generator, dtype=latents.dtype).to(latents.device).expand_as(latents)
