"""The statistics of published tables, by name, out of one run. Pure.

Numbers of different descriptors do not compare: each entry says which descriptor its paper used, and whether this run did.
"""
from dataclasses import dataclass, field

import numpy as np

DCR = ("Somepalli et al. 2023", "sscd-disc-large-256-224-half")
MEMBENCH = ("Hong et al. 2024", "sscd-disc-large-288-imagenet")


@dataclass(frozen=True)
class Dcr:
    """Similarity to the nearest training image."""
    mean: float
    std: float
    share_over_half: float = field(metadata={"key": "share_over_0.5"})  # share of images above .5
    p75: float
    p90: float
    p95: float


@dataclass(frozen=True)
class MemBench:
    """Similarity to the prompt's own training image."""
    max: float                  # the best image of each prompt, mean over prompts
    top3: float                 # mean of each prompt's best three, mean over prompts
    share_over_half: float = field(metadata={"key": "share_over_0.5"})  # share of images above .5
    n_prompts: int


@dataclass(frozen=True)
class DcrTable:
    paper: str
    descriptor: str             # what the paper used
    comparable: bool            # whether this run used it too
    methods: dict[str, dict[str, Dcr | None]]
    train_to_train: Dcr | None  # of training images to one another


@dataclass(frozen=True)
class MemBenchTable:
    paper: str
    descriptor: str
    comparable: bool
    methods: dict[str, dict[str, MemBench]]


@dataclass(frozen=True)
class Conventions:
    """The same run, counted as papers count."""
    dcr: DcrTable
    membench: MemBenchTable


def dcr(top1):
    """Similarity to the nearest training image (n,) -> Dcr, None without any."""
    top1 = np.asarray(top1, np.float64)
    if not len(top1):
        return None
    return Dcr(float(top1.mean()), float(top1.std()), float((top1 > 0.5).mean()),
               *(float(np.percentile(top1, p)) for p in (75, 90, 95)))


def membench(similarity, prompt):
    """Similarity of images (n,) to their prompt's training image, prompt (n,) -> MemBench."""
    similarity, (_, cluster) = np.asarray(similarity, np.float64), np.unique(np.asarray(prompt), return_inverse=True)
    best = [np.sort(similarity[cluster == c])[::-1] for c in range(cluster.max() + 1)]
    return MemBench(float(np.mean([b[0] for b in best])), float(np.mean([b[:3].mean() for b in best])),
                    float((similarity > 0.5).mean()), len(best))


def conventions(samples, measured, layer):
    """-> Conventions.

    MemBench's similarity is to the prompt's own training image; where no prompt names one, to the nearest.
    """
    by_dcr, by_membench = {}, {}
    for (method, group), at in samples.cells.items():
        prompts = [r.image if r.prompt_index is None else r.prompt_index for r in (samples.records[i] for i in at)]
        own, top1 = measured.near.own[at], measured.near.top1[at]
        by_dcr.setdefault(method, {})[group] = dcr(top1)
        by_membench.setdefault(method, {})[group] = membench(np.where(np.isnan(own), top1, own), prompts)
    used = layer.index.descriptor.name
    return Conventions(DcrTable(*DCR, used.startswith(DCR[1]), by_dcr, dcr(layer.nulls["train"])),
                       MemBenchTable(*MEMBENCH, used.startswith(MEMBENCH[1]), by_membench))
