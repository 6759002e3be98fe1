"""Scores of prompts by a detector, batch by batch."""
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from rotescope.common.errors import InputError
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.readers.sources import load_manifest
from rotescope.mitigate.contract.catalogue import name_of
from rotescope.mitigate.contract.families import denoiser_of, family
from rotescope.mitigate.detectors.registry import DETECTORS, get_detector
from rotescope.mitigate.detectors.training_image_recall import Recall, recall_scores
from rotescope.mitigate.detectors.whitebox import HessianVector, WhiteBox
from rotescope.mitigate.prompts.prompt import Prompt
from rotescope.mitigate.sampling.jobs import batches, calls_of
from rotescope.mitigate.sampling.options import unique_names
from rotescope.models.memory import is_quantized
from rotescope.models.pipelines import chosen_device, load_pipeline


@torch.no_grad()
def score_prompts(pipe, prompts, detector, *, examples=None, seed=1000, batch_size=64, on_image=None):
    """Yields the score of each Prompt, in order. Its n seeds start at `seed`; the batch around an image changes nothing.

    examples: the training images {image_id: Example}, for `recall` alone, which gives None where a prompt belongs to none.
    """
    if isinstance(detector, Recall):
        yield from recall_scores(pipe, prompts, examples or {}, detector, seed=seed, batch_size=batch_size, on_image=on_image)
        return
    if why := unserved(detector, pipe):
        raise InputError(why)
    observed = []
    for batch in batches(prompts, range(seed, seed + detector.n), batch_size):
        for jobs in calls_of(pipe, batch):
            observed += detector.observe(pipe, [prompts[i].text for i, _, _ in jobs], [s for _, _, s in jobs])
        for _ in batch if on_image else ():
            on_image()
        while len(observed) >= detector.n:
            yield detector.score(observed[:detector.n])
            del observed[:detector.n]


def unserved(detector: Any, pipe: Any) -> str | None:
    """Why a pipeline is none that a detector can look at, in a line; None where it is."""
    name, kind = type(detector).__name__, type(pipe).__name__
    if detector.families and family(pipe) not in detector.families:
        return f"{name} serves {', '.join(detector.families)}, not {kind}: name other detectors"
    if isinstance(detector, WhiteBox) and pipe.config.get("is_distilled"):
        return (f"{name} compares two predictions, and this {kind} is distilled and computes one: take the model that it was "
                "distilled from, or edges or cliques, which look at images alone")
    if isinstance(detector, HessianVector) and is_quantized(denoiser_of(pipe)):
        return ("sail takes a forward derivative, which layers of few bits do not have: leave --quantize out, or name other "
                "detectors")
    return None


def detect(model: Any, prompts: Iterable[str | Prompt], detectors: Any = ("magnitude",), *,
           train_data: str | Path | Manifest | None = None, seed: int = 1000,
           batch_size: int = 64) -> dict[str, list[float | None]]:
    """How memorized each prompt is, by one detector or several.

    Parameters
    ----------
    model : diffusers pipeline, str or Path
        A pipeline, or a model's folder or name on the hub.
    prompts : iterable of str or Prompt
        Texts; `recall` wants Prompts with the image_id of a training image.
    detectors : str or detector, or a sequence of them
        Names of `list_detectors`, perhaps with settings ("magnitude:n=4"), or what `get_detector` gives.
    train_data : str, Path or Manifest, optional
        The training images, which `recall` looks at.
    seed : int
        First seed of each prompt.
    batch_size : int
        Images at a time.

    Returns
    -------
    dict
        {detector: a score for each prompt, higher for memorized; None where it cannot be asked}.

    Raises
    ------
    InputError
        For an unknown detector, or one that does not serve the model.

    Examples
    --------
    >>> from rotescope import detect
    >>> found = detect(model, ["a cat on a blue background", "a dog"], ["magnitude:n=1,steps=1"])
    >>> len(found["magnitude"])
    2
    """
    several = tuple(detectors) if isinstance(detectors, list | tuple) else (detectors,)
    names = unique_names([d if isinstance(d, str) else name_of(d, DETECTORS) for d in several], "detector")
    chosen = dict(zip(names, (get_detector(d) if isinstance(d, str) else d for d in several), strict=True))
    given = [p if isinstance(p, Prompt) else Prompt(p) for p in prompts]
    data = load_manifest(train_data) if isinstance(train_data, str | Path) else train_data or ()
    examples = {e.image_id: e for e in data}
    if any(isinstance(d, Recall) for d in chosen.values()) and not any(p.image_id in examples for p in given):
        raise InputError("recall looks at the training images that prompts belong to: pass train_data, and Prompts with image_id")
    pipe = load_pipeline(str(model)).to(chosen_device("auto")) if isinstance(model, str | Path) else model
    return {name: list(score_prompts(pipe, given, detector, examples=examples, seed=seed, batch_size=batch_size))
            for name, detector in chosen.items()}
