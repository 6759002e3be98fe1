"""Training with latents and text embeddings computed once, against the plain loop that encodes in every step.

    python benchmarks/train_speed.py
    python benchmarks/train_speed.py --pretrained_model_name_or_path MODEL --train_data IMAGES --train_batch_size 4

Both train the same model on the same batches, in the same precision, with the same optimizer; their steps alternate in one
process, so that whatever else the machine does slows both. The plain loop is what diffusers' train_text_to_image.py does: read,
resize, crop, encode image and caption, add noise, predict, step by an AdamW that is not fused. Their losses must agree to 1e-4.
Peak memory is measured in processes of their own, mapped files left out. JSON on stdout. The last lines count, without running
it, what Stable Diffusion 1.5 at 512 px would gain: the ratio of a tiny model on one machine is not that of a large one.
"""
import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import Event, Thread

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from transformers import CLIPTextConfig, CLIPTextModel

from rotescope.common.errors import RunError, exit_cleanly
from rotescope.common.settings import parse, plain
from rotescope.datasets.manifest import decode, read_encoded
from rotescope.models.pipelines import load_pipeline
from rotescope.train.encodings.encode import encode
from rotescope.train.engine.job import check_job
from rotescope.train.engine.run_state import start
from rotescope.train.engine.steps import GlobalBatches
from rotescope.train.objective.objective import draw_levels
from rotescope.train.options.finetune_options import EMBEDDED, FinetuneConfig

UNET_15 = {"sample_size": 64, "cross_attention_dim": 768}  # the rest are the classes' own defaults
VAE_15 = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
          "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
TEXT_15 = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


@dataclass(frozen=True)
class BenchmarkConfig:
    pretrained_model_name_or_path: str = str(EMBEDDED["pretrained_model_name_or_path"])
    """a Stable Diffusion 1 or 2 model"""
    train_data: str = str(EMBEDDED["train_data"])
    """images and captions"""
    train_batch_size: int = 64
    """samples of a step; the demo's recipe takes 64"""
    steps: int = 40
    """timed steps of each loop"""
    warmup: int = 2
    """steps before, not timed"""
    epochs: int = 10
    """passes over the data that pay for the cache"""
    only: str | None = None
    """run one loop, "cached" or "plain", and print its peak memory"""


def job_of(config):
    with tempfile.TemporaryDirectory() as folder:  # nothing is written there
        return check_job(FinetuneConfig(config.pretrained_model_name_or_path, config.train_data, f"{folder}/out",
                                    train_batch_size=config.train_batch_size, learning_rate=1e-5))


def cached_losses(job, accelerator, cache_dir):
    """-> seconds for the cache, and an iterator of losses, a step each."""
    started = time.perf_counter()
    for part in (job.pipe.vae, job.pipe.text_encoder):
        part.to(accelerator.device)
    encoded = encode(job.manifest, job.pipe, job.preprocessing, job.hashes, cache_dir)
    seconds = time.perf_counter() - started
    return seconds, (result.loss for result in start(job, encoded, accelerator).steps())


def plain_losses(job, pipe, accelerator, batches):
    """An iterator of losses, a step each; the images of `batches` are read and encoded when they are needed. Trains `pipe`."""
    config = job.config
    device, noise = accelerator.device, DDPMScheduler.from_config(pipe.scheduler.config)
    side = job.preprocessing.resolution
    prepare = transforms.Compose([transforms.Resize(side, transforms.InterpolationMode.LANCZOS), transforms.CenterCrop(side),
                                  transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    for part in (pipe.vae, pipe.text_encoder):
        part.to(device)
    parameters = list(pipe.unet.requires_grad_(True).train().parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2),
                                  weight_decay=config.adam_weight_decay, eps=config.adam_epsilon)  # as there, not fused
    unet, optimizer = accelerator.prepare(pipe.unet, optimizer)
    for batch in batches:
        examples = [job.manifest[i] for i in batch.images]
        words = ["" if row == 0 else e.captions[0] for e, row in zip(examples, batch.captions.tolist(), strict=True)]
        pixels = torch.stack([prepare(decode(read_encoded(e.file, e.row), e.name)) for e in examples]).to(device)
        levels, drawn = batch.levels.to(device), batch.noise.to(device)
        with torch.no_grad():
            posterior = pipe.vae.encode(pixels).latent_dist
            x0 = (posterior.mean + posterior.std * batch.posterior_noise.to(device)) * pipe.vae.config.scaling_factor
            text = pipe.encode_prompt(words, device, 1, False)[0]
        velocity = noise.config.prediction_type == "v_prediction"
        target = noise.get_velocity(x0, drawn, levels) if velocity else drawn
        loss = torch.nn.functional.mse_loss(unet(noise.add_noise(x0, drawn, levels), levels, text).sample.float(), target.float())
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def same_batches(job):
    """The batches of the run, once more; only the shape of a latent is asked of the first image."""
    first = encode(type(job.manifest)(job.manifest.examples[:1]), job.pipe, job.preprocessing, job.hashes)
    config, words = job.config, ("", *job.manifest.captions())
    rows = {word: i for i, word in enumerate(words)}
    encoded = type(first)(first.images, first.texts, tuple(tuple(rows[c] for c in e.captions) for e in job.manifest), words)
    return GlobalBatches(encoded, [e.copies for e in job.manifest], config.train_batch_size, draw_levels(job.noise),
                         caption_dropout=config.caption_dropout, seed=config.seed)


def timed(losses):
    """-> loss, seconds of the next step."""
    started = time.perf_counter()
    loss = next(losses)
    return loss, time.perf_counter() - started


def measure(config, cache_dir):
    """-> what is printed."""
    job, accelerator = job_of(config), Accelerator()
    encoding = plain_losses(job, load_pipeline(config.pretrained_model_name_or_path), accelerator, same_batches(job))
    cache_seconds, cached = cached_losses(job, accelerator, cache_dir)
    times = {"cached": [], "plain": []}
    for step in range(config.warmup + config.steps):
        (ours, a), (theirs, b) = timed(cached), timed(encoding)
        if abs(ours - theirs) > 1e-4:
            raise RunError(f"the losses differ at step {step}: {ours} cached, {theirs} plain")
        if step >= config.warmup:
            times["cached"].append(a)
            times["plain"].append(b)
    step, n = {name: median(seconds) for name, seconds in times.items()}, config.train_batch_size
    total = config.epochs * job.manifest.copies / n
    return {"images": len(job.manifest), "batch": n, "device": str(accelerator.device), "cache_seconds": cache_seconds,
            "images_per_second": {name: n / seconds for name, seconds in step.items()}, "ratio": step["plain"] / step["cached"],
            f"ratio_at_{config.epochs}_epochs_cache_included": total * step["plain"] / (cache_seconds + total * step["cached"])}


def peak_megabytes(config):
    """Of each loop, the median of three processes: of the accelerator's memory if there is one, else of the process."""
    found = {"cached": [], "plain": []}
    for name in ("cached", "plain") * 3:
        options = {**plain(config), "only": name}
        command = [sys.executable, __file__, *(f"--{key}={value}" for key, value in options.items())]
        found[name].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return {name: median(values) for name, values in found.items()}


def run_one(config):
    """Five steps of one loop -> its peak memory in MB."""
    job, accelerator = job_of(config), Accelerator()
    with tempfile.TemporaryDirectory() as cache_dir, own_memory() as peak:
        losses = cached_losses(job, accelerator, cache_dir)[1] if config.only == "cached" else \
            plain_losses(job, job.pipe, accelerator, same_batches(job))
        for _, _ in zip(range(5), losses, strict=False):
            pass
    return round(torch.cuda.max_memory_allocated() / 1e6) if accelerator.device.type == "cuda" else peak()


@contextmanager
def own_memory(every=0.002):
    """-> a function that gives the process's peak of anonymous memory in MB, of looks `every` seconds.

    Pages of mapped files are not counted: the cache is one, and the system takes them back whenever it needs room.
    """
    seen, done = [], Event()

    def look():
        while not done.wait(every):
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            seen.append(int(status["RssAnon"].split()[0]))
    thread = Thread(target=look, daemon=True)
    thread.start()
    try:
        yield lambda: round(max(seen) * 1.024e-3)
    finally:
        done.set()
        thread.join()


def stable_diffusion_15():
    """Floating-point operations of a training sample at 512 px, counted on tensors without content; backward is twice forward."""
    with torch.device("meta"), torch.no_grad():
        unet, vae = UNet2DConditionModel(**UNET_15), AutoencoderKL(**VAE_15)
        text = CLIPTextModel(CLIPTextConfig(**TEXT_15))
        calls = {"unet": lambda: unet(torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, 77, 768)),
                 "vae": lambda: vae.encode(torch.empty(1, 3, 512, 512)),
                 "text": lambda: text(torch.zeros(1, 77, dtype=torch.long))}
        flops = {}
        for name, call in calls.items():
            with FlopCounterMode(display=False) as counter:
                call()
            flops[name] = counter.get_total_flops()
    train = 3 * flops["unet"]
    return {"tflop": {"unet, forward and backward": train / 1e12, "vae encoder": flops["vae"] / 1e12,
                      "text encoder": flops["text"] / 1e12},
            "ratio_at_most": (train + flops["vae"] + flops["text"]) / train}


@exit_cleanly
def main(argv=None):
    config = parse(BenchmarkConfig, sys.argv[1:] if argv is None else argv, prog="train_speed", description=__doc__)
    if config.only:
        print(run_one(config))
        return
    with tempfile.TemporaryDirectory() as cache_dir:
        found = measure(config, cache_dir)
    print(json.dumps(found | {"peak_megabytes": peak_megabytes(config), "stable_diffusion_1.5_at_512_px":
                              stable_diffusion_15()}, indent=2))


if __name__ == "__main__":
    main()
