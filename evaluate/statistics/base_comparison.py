"""Base against fine-tune: which prompts became memorized by this fine-tune, by similarity and by the prediction gap."""
from dataclasses import dataclass

import numpy as np
from scipy.stats import wilcoxon

from rotescope.common.errors import InputError


@dataclass(frozen=True)
class PromptAgainstBase:
    """One prompt under the fine-tune and under the base model: the same noise, so their images are pairs."""
    group: str
    prompt_index: int | None
    prompt: str
    # image_id of the training image that the prompt belongs to, "" if none is known
    expected: str
    q: float
    significant: bool
    leaked: bool
    copies: int
    similarity: float           # to the nearest training image, mean over images
    first_gap: float | None     # prediction gap of the first step that has one, mean over images
    base_copies: int
    base_similarity: float
    base_first_gap: float | None
    difference: float           # similarity − base_similarity
    became_memorized: bool


@dataclass(frozen=True)
class BaseComparison:
    """What the fine-tune added, for plain guidance, or for the first method where there is none."""
    method: str
    n: int                      # prompts
    n_images: int               # of the fine-tune; the base model has as many
    copies: int
    base_copies: int
    became_memorized: int       # prompts
    p: float                    # Wilcoxon's signed-rank test that similarity rose, over prompts
    prompts: tuple[PromptAgainstBase, ...]


def against_base(samples, measured, base, base_measured, prompts):
    """samples and base: the same prompts and seeds; prompts: PromptFindings of `samples` -> BaseComparison.

    A prompt became memorized by the fine-tune if it leaks (PromptFindings.leaked), and none of the base
    model's images on the same noise copies.
    """
    method = "none" if any(r.method == "none" for r in samples.records) else samples.records[0].method
    mate = {_key(r): i for i, r in enumerate(base.records)}
    told = {_prompt_key(p.prompt_index, p.image): p for p in prompts if p.method == method}
    found = [_against_base(samples, measured, base, base_measured, at, mate, told[index])
             for index, at in _positions(samples.records, method).items()]
    found.sort(key=lambda p: (-p.became_memorized, -p.difference))
    return BaseComparison(
        method, len(found), sum(r.method == method for r in samples.records),
        sum(p.copies for p in found), sum(p.base_copies for p in found),
        sum(p.became_memorized for p in found), _rise([p.difference for p in found]), tuple(found))


def _against_base(samples, measured, base, base_measured, at, mate, told):
    """One prompt: positions of its images, {key: position of the base model's image}, its PromptFindings."""
    lost = [samples.records[i] for i in at if _key(samples.records[i]) not in mate]
    if lost:
        what = lost[0].image if lost[0].prompt_index is None else f"of prompt {lost[0].prompt_index}, seed {lost[0].seed}"
        raise InputError(f"the base model's samples have no image {what}: sample the same prompts and seeds, under the same "
                         "names where there are no records")
    pair = [mate[_key(samples.records[i])] for i in at]
    similarity, base_similarity = float(measured.near.top1[at].mean()), float(base_measured.near.top1[pair].mean())
    base_copies = int(base_measured.copied[pair].sum())
    return PromptAgainstBase(
        told.group, told.prompt_index, told.prompt, told.expected, told.q, told.significant, told.leaked,
        int(measured.copied[at].sum()), similarity, _first_gap(samples.records[i] for i in at),
        base_copies, base_similarity, _first_gap(base.records[i] for i in pair),
        difference=similarity - base_similarity, became_memorized=bool(told.leaked and not base_copies))


def _key(record):
    """What an image and its mate of the base model have alike."""
    return _prompt_key(record.prompt_index, record.image), record.prompt, record.seed


def _prompt_key(index, image):
    return image if index is None else index


def _positions(records, method):
    found = {}
    for i, r in enumerate(records):
        if r.method == method:
            found.setdefault(_prompt_key(r.prompt_index, r.image), []).append(i)
    return found


def _first_gap(records):
    """Mean prediction gap of the first step that has one, over images; None without."""
    gaps = [next((g for g in r.prediction_gaps if not np.isnan(g)), np.nan) for r in records]
    return float(np.nanmean(gaps)) if not np.isnan(gaps).all() else None


def _rise(differences):
    differences = np.asarray(differences, np.float64)
    return float(wilcoxon(differences, alternative="greater").pvalue) if (differences != 0).any() else 1.0
