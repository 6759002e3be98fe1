"""Similarities -> the figures of one method and one group of prompts. Pure: numbers in, numbers out."""
import math
from dataclasses import dataclass, field

import numpy as np

from rotescope.evaluate.quality.fidelity_figures import Fidelity
from rotescope.evaluate.statistics.estimate import INTERVAL, LEVEL, Estimate, clopper_pearson

CONVENTIONS = (0.5, 0.7, 0.75)  # thresholds on SSCD of photographs: DCR and MemBench; Wen and NeMo; SSCD's authors


@dataclass(frozen=True)
class GroupFindings:
    """What was found of the images that one method made of one group of prompts; None where a
    figure does not apply."""
    n: int                                # images
    copies: int                           # images that copy any training image
    copy_rate: Estimate = field(metadata=INTERVAL)
    above_chance: bool                    # the copy rate's interval lies above what chance brings
    own_copies: int                       # images that copy the training image which their prompt belongs to
    own_copy_rate: Estimate | None = field(metadata=INTERVAL)
    # 95th percentile of the similarity to the nearest training image
    sim95: Estimate = field(metadata=INTERVAL)
    partial_copies: int | None            # images that are no copies and copy a part; None where parts were not sought
    partial_copy_rate: Estimate | None = field(metadata=INTERVAL)
    partial_above_chance: bool            # its interval lies above what chance brings
    top1_mean: float                      # mean of that similarity
    share_over: dict[str, float]          # published threshold -> share of images above it
    copies_by: dict[str, int]             # layer or verifier -> images that it calls copies
    n_prompts: int                        # an image whose prompt is unknown counts as one of its own
    prompts_copied: int                   # prompts with a copy among their images
    prompts_significant: int | None
    leaked_prompts: int                   # prompts whose copies chance does not explain
    leaked_prompts_any: int | None        # prompts whose copies, whole or in part, chance does not explain
    unresolved_prompts: int               # prompts that come close, where chance can be neither called nor ruled out
    unresolved_prompts_any: int           # the same, whole or in part
    alignment: float | None               # mean cosine with the prompt
    caption_accuracy: float | None        # share of images that no other caption fits better
    denoiser_rows: float | None           # mean number of images that pass through the denoiser for one
    transition_timestep: float | None     # mean
    fidelity: Fidelity | None


def images_needed(bar, level=LEVEL, copies=0):
    """How many independent images with so many copies it takes for the interval's upper end to fall to `bar`; inf if it never
    does. Of images that belong to prompts see clusters.prompts_needed.

    Without copies that end is 1 - ((1 - level) / 2)^(1 / n).
    """
    if not 0 < bar < 1:
        return math.inf if bar <= 0 else 1
    low, high = 0, max(math.ceil(copies), 1)
    while clopper_pearson(copies, high, level)[1] > bar:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if clopper_pearson(copies, middle, level)[1] <= bar else (middle, high)
    return high


def sim95(top1):
    """95th percentile of the similarity to the nearest training image (Somepalli et al. 2023)."""
    return float(np.quantile(np.asarray(top1, np.float64), 0.95))


def sim95_interval(top1, prompt, rounds=1000, level=LEVEL, seed=0):
    """Percentile bootstrap of sim95 -> (low, high). prompt (n,): prompts are drawn with all their images, since the images of
    one are alike; where there is one prompt only, images are drawn."""
    top1, (_, cluster) = np.asarray(top1, np.float64), np.unique(np.asarray(prompt), return_inverse=True)
    if cluster.max() == 0:
        cluster = np.arange(len(top1))
    members = np.split(np.argsort(cluster, kind="stable"), np.cumsum(np.bincount(cluster))[:-1])
    rng = np.random.default_rng(seed)
    drawn = [np.concatenate([members[c] for c in rng.integers(0, len(members), len(members))]) for _ in range(rounds)]
    tails = [(1 - level) / 2, (1 + level) / 2]
    return tuple(np.quantile([sim95(top1[rows]) for rows in drawn], tails).tolist())


def sim95_estimate(top1, prompt, n_prompts):
    """top1 (n,), whose prompt each is (n,), how many prompts there are -> Estimate."""
    low, high = sim95_interval(top1, prompt)
    return Estimate(sim95(top1), low, high, len(top1), n_prompts)


def shares_over(top1):
    """top1 (n,) -> {published threshold: share of images above it}."""
    return {f"{bar:g}": float((np.asarray(top1) > bar).mean()) for bar in CONVENTIONS}


def mean(values):
    """Of what is known; None if nothing is."""
    values = np.array([np.nan if v is None else v for v in values], np.float64)
    return float(np.nanmean(values)) if (~np.isnan(values)).any() else None
