"""Fine-tune a Stable Diffusion model, the whole UNet or a LoRA, on images of which some repeat as often as planned.

    accelerate launch train/finetune.py --config train/recipes/demo.yaml --output_dir runs/finetuned
    rotescope finetune --pretrained_model_name_or_path MODEL --train_data_dir IMAGES --output_dir OUT --lora true

Without a model, data or config it trains the embedded model on the embedded data as train/recipes/demo.yaml says.
"""
import sys
import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler

from rotescope.errors import exit_cleanly
from rotescope.progress import progress_bars
from rotescope.runs import output_folder
from rotescope.settings import parse
from rotescope.train.checkpoint import save_full, save_lora, save_record
from rotescope.train.job import DTYPES, EMBEDDED, FinetuneConfig, check
from rotescope.train.latents import encode
from rotescope.train.loop import DenoisingLoss, global_batches, training_steps

RECIPE = Path(__file__).resolve().parent / "recipes" / "demo.yaml"


def finetune(config, on_step=None, progress=True):
    """Train as `config` says -> the checkpoint's folder.

    `on_step(StepResult)` is called after each step. InputError before anything expensive, RunError when the loss is no number.
    """
    started = time.time()
    job = check(config)
    accelerator = Accelerator(mixed_precision=config.mixed_precision,
                              gradient_accumulation_steps=config.gradient_accumulation_steps)
    losses, served = [], torch.zeros(len(job.manifest), dtype=torch.long)
    bars = {"reading images": len(job.manifest), "fine-tuning": config.max_train_steps}
    with progress_bars(bars, disable=not (progress and accelerator.is_main_process)) as advance:
        encoded = _encode(job, accelerator, lambda done: advance("reading images", to=done))
        for result in _steps(job, encoded, accelerator):
            losses.append(result.loss)
            served += result.images.bincount(minlength=len(served))
            advance("fine-tuning", f"loss {result.loss:.4f}", to=result.step)
            if on_step:
                on_step(result)
    if accelerator.is_main_process:
        _save(job, served, {"processes": accelerator.num_processes, "steps": len(losses), "losses": losses[-100:],
                            "wall_seconds": round(time.time() - started, 1)})
    accelerator.wait_for_everyone()
    return Path(config.output_dir)


def _encode(job, accelerator, show):
    """Latents and embeddings, on the CPU; VAE and text encoder visit the accelerator for it."""
    frozen = (job.pipe.vae, job.pipe.text_encoder)
    for part in frozen:
        part.to(accelerator.device)
    with accelerator.main_process_first() if job.config.cache_dir else nullcontext():
        encoded = encode(job.manifest, job.pipe, job.preprocessing, job.hashes, job.config.cache_dir, show)
    for part in frozen:
        part.to("cpu")
    return encoded


def _steps(job, encoded, accelerator):
    """Iterator of StepResult; the UNet is trained in place."""
    config, noise = job.config, job.noise.config
    optimizer = torch.optim.AdamW(job.parameters, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2),
                                  weight_decay=config.adam_weight_decay, eps=config.adam_epsilon, fused=True)
    schedule = get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps,
                             num_training_steps=config.max_train_steps)
    unet, optimizer = accelerator.prepare(job.pipe.unet, optimizer)
    size = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
    batches = global_batches(encoded, [e.copies for e in job.manifest], size, num_train_timesteps=noise.num_train_timesteps,
                             caption_dropout=config.caption_dropout, seed=config.seed)
    loss = DenoisingLoss(encoded, job.noise.alphas_cumprod, noise.prediction_type, accelerator.device, config.snr_gamma)
    batches = islice(batches, config.max_train_steps)
    yield from training_steps(accelerator, unet, optimizer, schedule, batches, loss, config.max_grad_norm)
    job.pipe.unet = accelerator.unwrap_model(unet, keep_fp32_wrapper=False).cpu()


def _save(job, served, about):
    config = job.config
    with output_folder(config.output_dir, config.overwrite) as folder:
        weights = save_lora(job.pipe.unet, folder) if config.lora else save_full(job.pipe, folder, DTYPES[config.save_dtype])
        about = {"kind": "lora" if config.lora else "full", "base": config.pretrained_model_name_or_path, "seed": config.seed,
                 **about, "hashes": {"base": job.hashes["base"]}}
        save_record(folder, config, job.manifest.with_served(served), weights, about)


@exit_cleanly
def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    own = any(a.split("=")[0].replace("-", "_").strip("_") in EMBEDDED for a in argv)  # own model or data: no embedded dose
    config = parse(FinetuneConfig, argv, prog="rotescope finetune", description=__doc__, config=None if own else RECIPE)
    finetune(config)


if __name__ == "__main__":
    main()
