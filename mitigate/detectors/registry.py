"""Detectors of memorization by name: one score a prompt, higher = more memorized; all but `recall` see no training image.

    detector = get_detector("magnitude:n=1,steps=5")
    scores = list(score_prompts(pipe, prompts, detector))

A detector is a frozen dataclass of settings: `observe` says what it sees of each image, `score` makes one number of a prompt's n
images, `rows` is what a prompt costs. No score has a scale that carries over from one model to the next: compare prompts under
one model, or calibrate on prompts that are known to be ordinary.
"""
from dataclasses import dataclass
from typing import Any

import torch

from rotescope.common.errors import InputError
from rotescope.common.suggestions import nearest
from rotescope.mitigate.contract.families import family
from rotescope.mitigate.detectors.generated_images import Cliques, EdgeAgreement
from rotescope.mitigate.detectors.prediction_gap import Drop, Layout, Magnitude
from rotescope.mitigate.detectors.training_image_recall import Recall, recall_scores
from rotescope.mitigate.detectors.whitebox import Anisotropy, AttentionEntropy, BrightEnding, Confidence, HessianVector
from rotescope.mitigate.methods.registry import with_settings
from rotescope.mitigate.sampling.sampler import batches


@dataclass(frozen=True)
class Entry:
    preset: Any      # with the authors' settings
    paper: str
    needs: str       # what it must see


DETECTORS = {
    "magnitude": Entry(Magnitude(), "Wen et al., ICLR 2024, arXiv 2407.21720", "predictions"),
    "layout": Entry(Layout(), "this project, after Wen et al.", "predictions"),
    "drop": Entry(Drop(), "this project, after Jain et al., CVPR 2025, arXiv 2411.16738", "predictions"),
    "anisotropy": Entry(Anisotropy(), "Asthana & Belagiannis, ICLR 2026, arXiv 2601.20642", "predictions"),
    "sail": Entry(HessianVector(), "Jeon et al., ICML 2025, arXiv 2412.04140", "derivatives"),
    "bright-ending": Entry(BrightEnding(), "Chen et al., ICLR 2025, arXiv 2410.21665", "predictions, cross-attention"),
    "entropy-d": Entry(AttentionEntropy(metric="D"), "Ren et al., ECCV 2024, arXiv 2403.11052", "cross-attention"),
    "entropy-e": Entry(AttentionEntropy(metric="E"), "Ren et al., ECCV 2024, arXiv 2403.11052", "cross-attention"),
    "confidence": Entry(Confidence(), "Webster 2023, arXiv 2305.08694", "predictions"),
    "edges": Entry(EdgeAgreement(), "Webster 2023, arXiv 2305.08694", "images"),
    "cliques": Entry(Cliques(), "Carlini et al., USENIX Security 2023, arXiv 2301.13188", "images"),
    "recall": Entry(Recall(), "this project, after Zhai et al., NeurIPS 2024, arXiv 2405.14800", "predictions, training images"),
}


def get_detector(text):
    """'magnitude' or 'magnitude:n=1,steps=5' -> detector. InputError for an unknown name, key or value."""
    name, _, settings = text.partition(":")
    if name not in DETECTORS:
        raise InputError(f"no detector is called {name!r}: {nearest(name, DETECTORS)}")
    preset = DETECTORS[name].preset
    return with_settings(name, preset, settings)


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
