"""How well a model remembers a training image under its caption: for whoever has the training images, as an audit does.

At high noise hardly anything of the picture is left to see. A model that knows it by heart puts it back all the same, once the
caption names it; any other makes something that fits the caption.
"""
import math
from dataclasses import dataclass

import torch

from rotescope.common.errors import InputError
from rotescope.mitigate.adapters.compatibility import check_scheduler
from rotescope.mitigate.contract.families import CLASSIC, family
from rotescope.mitigate.denoiser.probe import Probe, image_latents
from rotescope.mitigate.sampling.jobs import batches
from rotescope.models.prediction import noisy_latents, rates_at


@dataclass(frozen=True)
class Recall:
    """ln of ‖ε̂(x_t, ∅) − ε‖² / ‖ε̂(x_t, c) − ε‖², x_t the training image under noise ε, both averaged over n noises.

    The difference of the two is the conditional likelihood discrepancy of Zhai et al. (CLiD, NeurIPS 2024, arXiv 2405.14800);
    the ratio does not grow with how much there is to see in a picture. Under flow matching σ = timestep / 1000.
    """
    families = CLASSIC    # whose latents are the VAE's, scaled, and whose denoiser takes both halves of them at once
    n: int = 4
    timestep: int = 700

    def __post_init__(self):
        if self.n < 1 or self.timestep < 0:
            raise InputError(f"n={self.n}, timestep={self.timestep}: n must be 1 or more, the timestep 0 or more")

    @property
    def rows(self):
        """Denoiser rows a prompt."""
        return 2 * self.n

    def observe(self, pipe, texts, latents, noise_seeds):
        """Latents (n, C, h, w) -> [(mean square error without, with the caption)]."""
        probe = Probe(pipe, texts, noise_seeds)
        x = noisy_latents(latents, probe.noise, *rates_at(pipe.scheduler, self.timestep))  # (n, C, h, w)
        cond, uncond = ((eps - probe.noise).square().flatten(1).mean(1).tolist() for eps in probe.eps(x, self.timestep))
        return list(zip(uncond, cond, strict=True))

    def score(self, observed):
        """What the noises of one image gave -> its score."""
        without, under = (sum(errors) for errors in zip(*observed, strict=True))
        return math.log(without / under)


@torch.no_grad()
def recall_scores(pipe, prompts, examples, recall, *, seed=1000, batch_size=64, on_image=None):
    """Prompts, training images {image_id: Example} -> a score for each prompt, in order; None where it belongs to no image.

    Its n noises start at `seed`; the batch around an image changes nothing. InputError if no prompt belongs to an image.
    """
    if family(pipe) not in recall.families:
        raise InputError(f"Recall serves {', '.join(recall.families)}, not {type(pipe).__name__}")
    check_scheduler(pipe.scheduler)
    limit = pipe.scheduler.config.num_train_timesteps
    if recall.timestep >= limit:
        raise InputError(f"timestep={recall.timestep}: this model has those below {limit}")
    known = [i for i, p in enumerate(prompts) if p.image_id in examples]
    if not known:
        raise InputError("recall looks at the training images that prompts belong to, and these belong to none: take another "
                         "detector")
    seen = {i: [] for i in known}
    for batch in batches(prompts, {i: range(seed, seed + recall.n) for i in known}, batch_size):
        own = {i: examples[prompts[i].image_id].open() for i, _, _ in batch}
        latents = image_latents(pipe, [own[i] for i, _, _ in batch])
        found = recall.observe(pipe, [prompts[i].text for i, _, _ in batch], latents, [s for _, _, s in batch])
        for (i, _, _), errors in zip(batch, found, strict=True):
            seen[i].append(errors)
            if on_image:
                on_image()
    return [recall.score(seen[i]) if i in seen else None for i in range(len(prompts))]
