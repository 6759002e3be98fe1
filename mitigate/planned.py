"""Sample by a plan: score every prompt cheaply, then spend what the budget leaves where scores and images point."""
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from PIL import Image

from rotescope.errors import InputError
from rotescope.mitigate.blackbox import clique_distance, tiled_distances
from rotescope.mitigate.detectors import get_detector, score_prompts
from rotescope.mitigate.generate import describe
from rotescope.mitigate.plan import PLANS, as_record, ranked, seeds_of, uniform
from rotescope.mitigate.sampler import SHARDS, batches, merge_shards, write_shard
from rotescope.progress import progress_bars
from rotescope.runs import write_json

SCORE_SEED = 1000  # first seed of the scores; images have others, so that no score has seen the image that it is judged by


def check_plan(config, n):
    """InputError where config's plan, budget, detector and seeds cannot sample n prompts -> images that the budget leaves."""
    if config.plan not in PLANS:
        raise InputError(f"no plan {config.plan!r}: take {' or '.join(PLANS)}")
    if config.plan == "ranked" and config.budget is None:
        raise InputError("--plan ranked needs a --budget: how many images it may spend")
    if config.budget is None:
        return None
    cost = score_cost(config, n) if config.plan == "ranked" else 0
    if config.budget < cost + 1:
        raise InputError(f"a budget of {config.budget} images is too small: the scores of {n} prompts by {config.detector} alone "
                         f"cost as much as {cost:.1f}; raise --budget, or name a cheaper --detector" if cost else
                         f"a budget of {config.budget} images samples nothing: raise --budget")
    return int(config.budget - cost)


def score_cost(config, n):
    """What scoring n prompts costs, in images: their rows through the denoiser, of which an image by plain guidance has two a
    step."""
    return n * get_detector(config.detector).rows / (2 * config.num_inference_steps)


def uniform_seeds(config, n):
    """-> {prompt index: seeds} of a random sample within the budget, and its record."""
    jobs = uniform(n, config.seeds, config.budget)
    return seeds_of(sorted(jobs)), as_record("uniform", config.budget, n, [jobs])


def sample_ranked(config, pipe, prompts, policies, folder):
    """Sample into `folder` by config's plan, budget and detector -> {prompt index: seeds}, and the plan's record.

    The first policy's images decide; the others get the same prompts and seeds.
    """
    detector, left, (first, *others) = get_detector(config.detector), check_plan(config, len(prompts)), policies
    settings = {"guidance_scale": config.guidance_scale, "num_inference_steps": config.num_inference_steps}
    shards, rounds = [], []
    with progress_bars({"scores": detector.n * len(prompts)} | dict.fromkeys(policies, left)) as advance:
        def run(method, jobs):
            for batch in batches(prompts, seeds_of(jobs), config.batch_size):
                shards.append(folder / SHARDS / f"{len(shards):06d}.parquet")
                write_shard(pipe, prompts, method, policies[method], batch, shards[-1], folder, settings)
                for _ in batch:
                    advance(method)
        scores = list(score_prompts(pipe, prompts, detector, seed=SCORE_SEED, batch_size=config.batch_size,
                                    on_image=partial(advance, "scores")))
        for jobs in ranked(scores, config.seeds, left, partial(agreement_in, folder / first / "images")):
            run(first, jobs)
            rounds.append(jobs)
        for method in others:
            run(method, [job for jobs in rounds for job in jobs])
    merge_shards(folder, shards)
    record = as_record("ranked", config.budget, len(prompts), rounds, scores, detector=config.detector,
                       score_images=score_cost(config, len(prompts)))
    write_json(folder / "run.json", {"methods": {name: asdict(p) for name, p in policies.items()}, **settings,
                                     **describe(config, prompts, policies)})
    return seeds_of(job for jobs in rounds for job in jobs), record


def agreement_in(folder, prompt_index):
    """How alike the images of one prompt in a folder are that the sampler wrote: as `agreement` has it."""
    return agreement([Image.open(file) for file in sorted(folder.glob(f"P{prompt_index:05d}-S*.png"))])


def agreement(images):
    """PIL images of one prompt, two or more -> minus the distance of the closest two, tile by tile (Carlini et al. 2023)."""
    pixels = torch.stack([torch.from_numpy(np.array(i.convert("RGB"))) for i in images]).permute(0, 3, 1, 2) / 255
    return -clique_distance(tiled_distances(pixels).numpy(), 2)
