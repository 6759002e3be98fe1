"""Sample by a plan: score every prompt cheaply, then spend what the budget leaves where scores and images point."""
from functools import partial

import numpy as np
import torch
from PIL import Image

from rotescope.common.errors import InputError
from rotescope.common.outputs import write_json
from rotescope.common.progress import progress_bars
from rotescope.datasets.images.tiled_distance import tiled_distances
from rotescope.mitigate.budget.allocation import PLANS, as_record, ranked, seeds_of, uniform
from rotescope.mitigate.contract.families import guidance_scale_of
from rotescope.mitigate.detectors.generated_images import clique_distance
from rotescope.mitigate.detectors.prompt_scores import score_prompts
from rotescope.mitigate.detectors.registry import get_detector
from rotescope.mitigate.detectors.training_image_recall import Recall
from rotescope.mitigate.sampling.encoded_texts import EncodedTexts
from rotescope.mitigate.sampling.jobs import batches
from rotescope.mitigate.sampling.run_description import describe
from rotescope.mitigate.sampling.sampler import SHARDS, merge_shards, told_effects, write_shard

SCORE_SEED = 1000  # first seed of the scores; images have others, so that no score has seen the image that it is judged by


def check_plan(config, prompts):
    """InputError where the prompts cannot be sampled by config's plan, budget and detector."""
    if config.plan not in PLANS:
        raise InputError(f"no plan {config.plan!r}: take {' or '.join(PLANS)}")
    if config.budget is not None and config.budget < 1:
        raise InputError(f"a budget of {config.budget} images samples nothing: raise --budget")
    if config.plan == "ranked":
        _check_ranked(config, prompts)


def _check_ranked(config, prompts):
    detector = get_detector(config.detector)
    if isinstance(detector, Recall) and not any(p.image_id for p in prompts):
        raise InputError("recall looks at the training images that prompts belong to, and these belong to none: name another "
                         "--detector")
    if config.budget is None:
        raise InputError("--plan ranked needs a --budget: how many images it may spend")
    cost = score_cost(detector, len(prompts), config.num_inference_steps)
    if config.budget < cost + 1:
        raise InputError(f"a budget of {config.budget} images is too small: the scores of {len(prompts)} prompts by "
                         f"{config.detector} alone cost as much as {cost:.1f}; raise --budget, or name a cheaper --detector")


def score_cost(detector, n, num_inference_steps):
    """What scoring n prompts costs, in images: rows through the denoiser, of which an image by plain guidance has two a step."""
    return n * detector.rows / (2 * num_inference_steps)


def scores_of(pipe, prompts, detector, manifest, **settings):
    """-> a score for each prompt, higher = more memorized; None where `recall` has no training image to look at."""
    return list(score_prompts(pipe, prompts, detector, examples={e.image_id: e for e in manifest}, seed=SCORE_SEED, **settings))


def uniform_seeds(config, n):
    """-> {prompt index: seeds} of a random sample within the budget, and its record."""
    jobs = uniform(n, config.seeds, config.budget)
    return seeds_of(sorted(jobs)), as_record("uniform", config.budget, n, [jobs])


def sample_ranked(config, pipe, prompts, policies, folder, manifest):
    """Sample into `folder` by config's plan, budget and detector -> {prompt index: seeds}, and the plan's record.

    The first policy's images decide; the others get the same prompts and seeds.
    """
    detector, (first, *others) = get_detector(config.detector), policies
    cost = score_cost(detector, len(prompts), config.num_inference_steps)
    left = int(config.budget - cost)
    shards, rounds, settings = [], [], config.sampling | {"kept": EncodedTexts()}
    with progress_bars({"scores": detector.n * len(prompts)} | dict.fromkeys(policies, left)) as advance:
        def run(method, jobs):
            for batch in batches(prompts, seeds_of(jobs), config.batch_size):
                shards.append(folder / SHARDS / f"{len(shards):06d}.parquet")
                write_shard(pipe, prompts, method, policies[method], batch, shards[-1], folder, settings)
                for _ in batch:
                    advance(method)
        scores = scores_of(pipe, prompts, detector, manifest, batch_size=config.batch_size, on_image=partial(advance, "scores"))
        for jobs in ranked(scores, config.seeds, left, partial(pair_agreement_in, folder / first / "images")):
            run(first, jobs)
            rounds.append(jobs)
        for method in others:
            run(method, [job for jobs in rounds for job in jobs])
    merge_shards(folder, shards)
    record = as_record("ranked", config.budget, len(prompts), rounds, scores, detector=config.detector, score_images=cost)
    write_json(folder / "run.json", describe(config, prompts, policies) | {
        "active": told_effects(folder, policies), "guidance_scale": guidance_scale_of(pipe, config.guidance_scale)})
    return seeds_of(job for jobs in rounds for job in jobs), record


def pair_agreement_in(folder, prompt_index):
    """How alike the images of one prompt in a folder are that the sampler wrote: as pair_agreement has it."""
    return pair_agreement([Image.open(file) for file in sorted(folder.glob(f"P{prompt_index:05d}-S*.png"))])


def pair_agreement(images):
    """PIL images of one prompt, two or more -> minus the distance of the closest two, tile by tile (Carlini et al. 2023)."""
    return -clique_distance(tiled_distances(as_pixels(images)).numpy(), 2)


def as_pixels(images):
    """PIL images of one size -> (n, 3, h, w) in [0, 1]."""
    return torch.stack([torch.from_numpy(np.array(i.convert("RGB"))) for i in images]).permute(0, 3, 1, 2) / 255
