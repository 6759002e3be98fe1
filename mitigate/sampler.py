"""Prompts × seeds × policies -> images and what happened in each step. One noise an image, whatever the batch around it."""
import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from rotescope.mitigate.hooks import mitigated
from rotescope.runs import write_json

SCHEMA = pa.schema([
    ("image", pa.string()), ("method", pa.string()), ("prompt_index", pa.int32()), ("prompt", pa.string()), ("seed", pa.int64()),
    ("noise_seed", pa.int64()), ("group", pa.string()), ("image_id", pa.string()), ("denoiser_rows", pa.int32()),
    ("transition_timestep", pa.int32()), ("prediction_gaps", pa.list_(pa.float32())), ("timesteps", pa.list_(pa.int32())),
])


@dataclass(frozen=True)
class Sample:
    image: Image.Image
    prompt_index: int
    seed: int
    noise_seed: int
    denoiser_rows: int
    transition_timestep: int | None
    prediction_gaps: list[float]
    timesteps: list[int]


def noise_seed(prompt, seed):
    """The seed of an image's own generator: a different noise for each prompt and each seed, the same in every run."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()[:6], "big")


def sample(pipe, prompts, policy, seeds, *, guidance_scale=7.5, num_inference_steps=50, batch_size=64) -> Iterator[Sample]:
    """Yields one Sample for each (prompt, seed), prompt by prompt. An image is what pipe(prompt, generator=torch.Generator()
    .manual_seed(noise_seed)) gives alone."""
    jobs = [(i, seed, noise_seed(prompt.text, seed)) for i, prompt in enumerate(prompts) for seed in seeds]
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start:start + batch_size]
        with mitigated(pipe, policy) as run:
            images = pipe([prompts[i].text for i, _, _ in batch], guidance_scale=guidance_scale,
                          num_inference_steps=num_inference_steps,
                          generator=[torch.Generator().manual_seed(s) for _, _, s in batch]).images
        signals = zip(run.denoiser_rows, run.transition_timesteps, run.prediction_gaps, strict=True)
        for job, image, signal in zip(batch, images, signals, strict=True):
            yield Sample(image, *job, *signal, run.timesteps)


def sample_to_folder(pipe, prompts, policies, seeds, out, *, about=None, on_sample=None, **settings):
    """Sample every policy ({name: policy}) -> images/, records.parquet and run.json in the folder `out`.

    Files are named by number and seed alone: a caption is never part of a path. `on_sample(method)` is called for each image.
    """
    rows = []
    for method, policy in policies.items():
        (out / method / "images").mkdir(parents=True)
        for s in sample(pipe, prompts, policy, seeds, **settings):
            file = f"{method}/images/P{s.prompt_index:05d}-S{s.seed}.png"
            s.image.save(out / file)
            prompt = prompts[s.prompt_index]
            rows.append({**vars(s), "image": file, "method": method, "prompt": prompt.text, "group": prompt.group,
                         "image_id": prompt.image_id})
            if on_sample:
                on_sample(method)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), out / "records.parquet")
    write_json(out / "run.json", {**(about or {}), "methods": {name: asdict(p) for name, p in policies.items()},
                                  "seeds": list(seeds), **settings})
