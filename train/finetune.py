"""Fine-tune a Stable Diffusion model, the whole UNet or a LoRA, on images of which some repeat as often as planned.

    accelerate launch train/finetune.py --config train/recipes/demo.yaml --output_dir runs/finetuned
    rotescope finetune --pretrained_model_name_or_path MODEL --train_data_dir IMAGES --output_dir OUT --lora true

Without a model, data or config it trains the embedded model on the embedded data as train/recipes/demo.yaml says.
"""
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rotescope.datasets.duplicate import DuplicationPlan, apply_plan
from rotescope.datasets.sources import load_source
from rotescope.errors import InputError, exit_cleanly
from rotescope.runs import check_output, output_folder
from rotescope.settings import parse
from rotescope.train.checkpoint import add_lora, component_hashes, find_model, load_pipeline, save_full, save_lora, save_record
from rotescope.train.latents import Preprocessing, encode, too_long
from rotescope.train.loop import DenoisingLoss, global_batches, training_steps
from rotescope.train.objective import TARGETS

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "recipes" / "demo.yaml"
EMBEDDED = {"pretrained_model_name_or_path": HERE / "base", "train_data_dir": HERE.parent / "datasets/emoji/finetune.parquet"}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


@dataclass(frozen=True)
class FinetuneConfig:
    pretrained_model_name_or_path: str = str(EMBEDDED["pretrained_model_name_or_path"])
    """model folder in Stable Diffusion's layout, or its name on the hub"""
    train_data_dir: str = str(EMBEDDED["train_data_dir"])
    """folder of captioned images, Parquet file, saved Hugging Face data set, or manifest of rotescope prepare"""
    output_dir: str = "runs/finetuned"
    """where the checkpoint goes"""
    overwrite: bool = False
    """replace output_dir"""
    save_dtype: str = "fp32"
    """number format of a saved full model: fp32, fp16 or bf16"""
    cache_dir: str | None = None
    """keep latents and text embeddings here for the next run; they are computed once in any case"""

    duplicated: int = 0
    """how many images repeat"""
    copies: int = 1
    """how often an epoch shows each of them"""
    controls: int = 0
    """how many untouched images to mark for comparison; their captions are no duplicated image's"""
    caption_style: str = "same"
    """"same": every copy under the image's own captions; "several": under several rewordings in turn"""
    plan_seed: int = 0
    """which images repeat and which are controls"""
    exclusive: bool = False
    """leave out other images that bear the caption of a duplicated one"""

    resolution: int | None = None
    """side of the training images in pixels; the model's own unless given"""
    center_crop: bool = True
    """crop in the middle; else somewhere, but always there"""
    random_flip: bool = False
    """mirror half of the samples"""
    caption_dropout: float = 0.1
    """share of the samples that train the unconditional branch"""

    lora: bool = False
    """train a LoRA on the UNet instead of the UNet"""
    rank: int = 4
    """of the LoRA"""
    lora_alpha: float | None = None
    """scale of the LoRA times its rank; the rank unless given"""
    lora_layers: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")
    """which layers get a LoRA, by the ends of their names"""

    seed: int = 0
    """of everything random in training; the same seed gives the same weights"""
    train_batch_size: int = 16
    """samples a process and a gradient accumulation step"""
    gradient_accumulation_steps: int = 1
    """parts of a batch that go through the model one after another"""
    gradient_checkpointing: bool = False
    """less memory, more time"""
    max_train_steps: int = 1000
    """optimizer steps"""
    learning_rate: float = 1e-4
    """of AdamW"""
    lr_scheduler: str = "constant"
    """constant, constant_with_warmup, linear, cosine, cosine_with_restarts or polynomial"""
    lr_warmup_steps: int = 0
    """for all schedules but constant"""
    adam_beta1: float = 0.9
    """decay of AdamW's first moment"""
    adam_beta2: float = 0.999
    """decay of AdamW's second moment"""
    adam_weight_decay: float = 1e-2
    """of AdamW"""
    adam_epsilon: float = 1e-8
    """of AdamW: gradients well below it hardly move a weight"""
    max_grad_norm: float = 1.0
    """gradients are clipped at this norm"""
    snr_gamma: float | None = None
    """min-SNR weighting of the loss; 5.0 is its authors' value"""
    mixed_precision: str | None = None
    """no, fp16 or bf16; as accelerate is configured unless given"""


def finetune(config, on_step=None, progress=True):
    """Train as `config` says -> the checkpoint's folder.

    `on_step(StepResult)` is called after each step. InputError before anything expensive, RunError when the loss is no number.
    """
    started = time.time()
    _check(config)
    check_output(config.output_dir, config.overwrite)
    model = find_model(config.pretrained_model_name_or_path)
    manifest = _plan(config)
    accelerator = Accelerator(mixed_precision=config.mixed_precision,
                              gradient_accumulation_steps=config.gradient_accumulation_steps)
    pipe = load_pipeline(model)
    check_output(config.output_dir, config.overwrite, min_free_mb=_megabytes(pipe, config))
    _warn_of_long_captions(manifest, pipe.tokenizer, accelerator)
    hashes = component_hashes(model)

    with _bars(progress and accelerator.is_main_process) as bar:
        encoded = _encode(config, manifest, pipe, hashes, accelerator, bar("reading images", len(manifest)))
        show, losses, served = bar("fine-tuning", config.max_train_steps), [], torch.zeros(len(manifest), dtype=torch.long)
        for result in _steps(config, manifest, pipe, encoded, accelerator):
            losses.append(result.loss)
            served += result.images.bincount(minlength=len(manifest))
            show(result.step, f"loss {result.loss:.4f}")
            if on_step:
                on_step(result)
    if accelerator.is_main_process:
        about = {"kind": "lora" if config.lora else "full", "base": config.pretrained_model_name_or_path, "seed": config.seed,
                 "processes": accelerator.num_processes, "steps": len(losses), "losses": losses[-100:],
                 "wall_seconds": round(time.time() - started, 1), "hashes": {"base": hashes["base"]}}
        _save(config, pipe, manifest.with_served(served), about)
    accelerator.wait_for_everyone()
    return Path(config.output_dir)


def _check(config):
    """InputError on values that no run can have."""
    for name in ("train_batch_size", "gradient_accumulation_steps", "max_train_steps", "rank"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name} {getattr(config, name)}: it should be 1 or more")
    if not 0 <= config.caption_dropout <= 1:
        raise InputError(f"--caption_dropout {config.caption_dropout}: it is a share, from 0 to 1")
    for name, known in (("save_dtype", DTYPES), ("lr_scheduler", SCHEDULES), ("mixed_precision", (None, "no", "fp16", "bf16"))):
        if getattr(config, name) not in known:
            raise InputError(f"--{name} {getattr(config, name)}: take one of {', '.join(filter(None, known))}")


def _plan(config):
    plan = DuplicationPlan(config.duplicated, config.copies, config.caption_style,
                           config.controls, config.plan_seed, config.exclusive)
    return apply_plan(load_source(config.train_data_dir), plan)


def _megabytes(pipe, config):
    """Disk that the checkpoint will take, and some more."""
    parts = () if config.lora else (pipe.unet, pipe.vae, pipe.text_encoder)
    return 50 + sum(p.numel() for part in parts for p in part.parameters()) * DTYPES[config.save_dtype].itemsize / 1e6


def _warn_of_long_captions(manifest, tokenizer, accelerator):
    long = too_long(manifest.captions(), tokenizer)
    if long and accelerator.is_main_process:
        line = f"warning: {len(long)} captions are cut at the model's {tokenizer.model_max_length} tokens, the first: {long[0]}"
        Console(stderr=True).print(line, markup=False, soft_wrap=True)


def _encode(config, manifest, pipe, hashes, accelerator, show):
    """Latents and embeddings on the CPU; VAE and text encoder leave the accelerator again."""
    resolution = config.resolution or pipe.unet.config.sample_size * pipe.vae_scale_factor
    if resolution % pipe.vae_scale_factor:
        raise InputError(f"--resolution {resolution}: take a multiple of {pipe.vae_scale_factor} for this model")
    preprocessing = Preprocessing(resolution, config.center_crop, config.random_flip)
    pipe.vae.to(accelerator.device), pipe.text_encoder.to(accelerator.device)
    with accelerator.main_process_first() if config.cache_dir else nullcontext():
        encoded = encode(manifest, pipe, preprocessing, hashes, config.cache_dir, show)
    pipe.vae.to("cpu"), pipe.text_encoder.to("cpu")
    return encoded


def _steps(config, manifest, pipe, encoded, accelerator):
    """Iterator of StepResult; pipe.unet is trained in place."""
    noise = DDPMScheduler.from_config(pipe.scheduler.config)
    if noise.config.prediction_type not in TARGETS:
        raise InputError(f"the model predicts {noise.config.prediction_type!r}: training knows {', '.join(TARGETS)}")
    parameters = _trainable(config, pipe.unet)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2),
                                  weight_decay=config.adam_weight_decay, eps=config.adam_epsilon, fused=True)
    schedule = get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps,
                             num_training_steps=config.max_train_steps)
    unet, optimizer = accelerator.prepare(pipe.unet, optimizer)
    size = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
    batches = global_batches(encoded, [e.copies for e in manifest], size, num_train_timesteps=noise.config.num_train_timesteps,
                             caption_dropout=config.caption_dropout, seed=config.seed)
    loss = DenoisingLoss(encoded, noise.alphas_cumprod, noise.config.prediction_type, accelerator.device, config.snr_gamma)
    batches = islice(batches, config.max_train_steps)
    yield from training_steps(accelerator, unet, optimizer, schedule, batches, loss, config.max_grad_norm)
    pipe.unet = accelerator.unwrap_model(unet, keep_fp32_wrapper=False).cpu()


def _trainable(config, unet):
    unet.train()
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if not config.lora:
        unet.requires_grad_(True)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            add_lora(unet, config.rank, config.lora_alpha or config.rank, config.lora_layers)
    return [p for p in unet.parameters() if p.requires_grad]


def _save(config, pipe, manifest, about):
    with output_folder(config.output_dir, config.overwrite) as folder:
        weights = save_lora(pipe.unet, folder) if config.lora else save_full(pipe, folder, DTYPES[config.save_dtype])
        save_record(folder, config, manifest, weights, about)


@contextmanager
def _bars(shown):
    """Bars with an ETA on stderr: bar(title, total) -> show(done, text)."""
    columns = (TextColumn("{task.description:15s}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"),
               TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bars:
        def bar(title, total):
            task = bars.add_task(title, total=total, text="")
            return lambda done, text="": bars.update(task, completed=done, text=text)
        yield bar


@exit_cleanly
def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    own = any(a.split("=")[0].replace("-", "_").strip("_") in EMBEDDED for a in argv)  # own model or data: no embedded dose
    config = parse(FinetuneConfig, argv, prog="rotescope finetune", description=__doc__, config=None if own else RECIPE)
    finetune(config)


if __name__ == "__main__":
    main()
