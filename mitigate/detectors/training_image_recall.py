"""How well a model remembers a training image under its caption: for whoever has the training images, as an audit does.

At high noise hardly anything of the picture is left to see. A model that knows it by heart puts it back all the same, once the
caption names it; any other makes something that fits the caption.
"""
import math
from dataclasses import dataclass

import torch

from rotescope.common.errors import InputError
from rotescope.mitigate.adapters.compatibility import check_scheduler
from rotescope.mitigate.contract.text_inputs import EMBEDDING, NEGATIVE, SERVED
from rotescope.mitigate.denoiser.branch_loss import BranchLoss, own_side, why_no_loss
from rotescope.mitigate.denoiser.probe import image_latents
from rotescope.mitigate.sampling.embedded_prompts import negative_inputs, positive_inputs, text_inputs
from rotescope.mitigate.sampling.encoded_texts import EncodedTexts
from rotescope.mitigate.sampling.jobs import batches, calls_of


@dataclass(frozen=True)
class Recall:
    """ln of ‖ε̂(x_t, ∅) − ε‖² / ‖ε̂(x_t, c) − ε‖², x_t the training image under noise ε, both averaged over n noises.

    The difference of the two is the conditional likelihood discrepancy of Zhai et al. (CLiD, NeurIPS 2024, arXiv 2405.14800);
    the ratio does not grow with how much there is to see in a picture. Under flow matching σ = timestep / 1000.
    """
    families = SERVED    # whose loss is known
    n: int = 4
    timestep: int = 700

    def __post_init__(self):
        if self.n < 1 or self.timestep < 0:
            raise InputError(f"n={self.n}, timestep={self.timestep}: n must be 1 or more, the timestep 0 or more")

    @property
    def rows(self):
        """Denoiser rows a prompt."""
        return 2 * self.n

    def observe(self, pipe, texts, pictures, noise_seeds, kept):
        """n texts and RGB pictures -> [(mean square error without, with the caption)]. kept: EncodedTexts."""
        latents, losses = caption_losses(pipe, texts, pictures, kept)
        noise = torch.stack([torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(s), dtype=latents.dtype)
                             for s in noise_seeds]).to(latents)
        timesteps = torch.full((len(texts),), self.timestep, device=latents.device)
        return list(zip(*(loss(latents, noise, timesteps).tolist() for loss in losses), strict=True))

    def score(self, observed):
        """What the noises of one image gave -> its score."""
        without, under = (sum(errors) for errors in zip(*observed, strict=True))
        return math.log(without / under)


def caption_losses(pipe, texts, pictures, kept):
    """n texts and RGB pictures -> latents (n, C, h, w), and two BranchLoss of n rows, without and with the caption. kept:
    EncodedTexts. InputError for a pipeline that computes one branch."""
    arguments, call = text_inputs(pipe, texts, kept)
    if NEGATIVE + EMBEDDING not in arguments:
        raise InputError(f"errors with and without a caption are compared, and {type(pipe).__name__} computes one of them: its "
                         "guidance is distilled; take the model that it was distilled from")
    side = own_side(pipe, call)
    losses = [BranchLoss(pipe, branch, side) for branch in (negative_inputs(arguments), positive_inputs(arguments))]
    return image_latents(pipe, pictures, side), losses


@torch.no_grad()
def recall_scores(pipe, prompts, examples, recall, *, seed=1000, batch_size=64, on_image=None):
    """Prompts, training images {image_id: Example} -> a score for each prompt, in order; None where it belongs to no image.

    Its n noises start at `seed`; the batch around an image changes nothing. InputError if no prompt belongs to an image.
    """
    if why := why_no_loss(pipe):
        raise InputError(f"recall asks for the loss of a denoiser: {why}")
    check_scheduler(pipe.scheduler)
    limit = pipe.scheduler.config.num_train_timesteps
    if recall.timestep >= limit:
        raise InputError(f"timestep={recall.timestep}: this model has those below {limit}")
    known = [i for i, p in enumerate(prompts) if p.image_id in examples]
    if not known:
        raise InputError("recall looks at the training images that prompts belong to, and these belong to none: take another "
                         "detector")
    seen, kept = {i: [] for i in known}, EncodedTexts()
    cut = batches(prompts, {i: range(seed, seed + recall.n) for i in known}, batch_size)
    for batch in (jobs for together in cut for jobs in calls_of(pipe, together)):
        pictures = {i: examples[prompts[i].image_id].open() for i, _, _ in batch}
        found = recall.observe(pipe, [prompts[i].text for i, _, _ in batch], [pictures[i] for i, _, _ in batch],
                               [s for _, _, s in batch], kept)
        for (i, _, _), errors in zip(batch, found, strict=True):
            seen[i].append(errors)
            if on_image:
                on_image()
    return [recall.score(seen[i]) if i in seen else None for i in range(len(prompts))]
