"""Scores of prompts by a detector, batch by batch."""
import torch

from rotescope.common.errors import InputError
from rotescope.mitigate.contract.families import family
from rotescope.mitigate.detectors.training_image_recall import Recall, recall_scores
from rotescope.mitigate.sampling.sampler import batches


@torch.no_grad()
def score_prompts(pipe, prompts, detector, *, examples=None, seed=1000, batch_size=64, on_image=None):
    """Yields the score of each Prompt, in order. Its n seeds start at `seed`; the batch around an image changes nothing.

    examples: the training images {image_id: Example}, for `recall` alone, which gives None where a prompt belongs to none.
    """
    if isinstance(detector, Recall):
        yield from recall_scores(pipe, prompts, examples or {}, detector, seed=seed, batch_size=batch_size, on_image=on_image)
        return
    if detector.families and family(pipe) not in detector.families:
        raise InputError(f"{type(detector).__name__} serves {', '.join(detector.families)}, not {type(pipe).__name__}")
    observed = []
    for batch in batches(prompts, range(seed, seed + detector.n), batch_size):
        observed += detector.observe(pipe, [prompts[i].text for i, _, _ in batch], [s for _, _, s in batch])
        for _ in batch if on_image else ():
            on_image()
        while len(observed) >= detector.n:
            yield detector.score(observed[:detector.n])
            del observed[:detector.n]
