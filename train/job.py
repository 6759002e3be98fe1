"""What a fine-tuning run is: its config, and the job that a good config becomes before anything expensive happens."""
import os
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from rich.console import Console

from rotescope.datasets.duplicate import DuplicationPlan, apply_plan
from rotescope.datasets.records import Manifest
from rotescope.datasets.sources import load_source
from rotescope.errors import InputError
from rotescope.models import BASE, find_model, load_pipeline
from rotescope.runs import check_output
from rotescope.train.checkpoint import add_lora, component_hashes
from rotescope.train.latents import Preprocessing, too_long
from rotescope.train.objective import TARGETS

EMBEDDED = {"pretrained_model_name_or_path": BASE, "train_data_dir": BASE.parent.parent / "datasets/emoji/finetune.parquet"}
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


@dataclass(frozen=True)
class Job:
    """A run whose input was found good: nothing expensive has happened yet."""
    config: FinetuneConfig
    manifest: Manifest
    pipe: StableDiffusionPipeline
    hashes: dict[str, str]        # of the model and of the parts that latents and embeddings depend on
    preprocessing: Preprocessing
    noise: DDPMScheduler
    parameters: list[torch.nn.Parameter]


def check(config):
    """-> Job. InputError on anything that would stop the run later."""
    _check_values(config)
    check_output(config.output_dir, config.overwrite)
    model = find_model(config.pretrained_model_name_or_path)
    plan = DuplicationPlan(config.duplicated, config.copies, config.caption_style,
                           config.controls, config.plan_seed, config.exclusive)
    manifest = apply_plan(load_source(config.train_data_dir), plan)
    pipe = load_pipeline(model)
    check_output(config.output_dir, config.overwrite, min_free_mb=_megabytes(pipe, config))
    noise = DDPMScheduler.from_config(pipe.scheduler.config)
    if noise.config.prediction_type not in TARGETS:
        raise InputError(f"the model predicts {noise.config.prediction_type!r}: training knows {', '.join(TARGETS)}")
    resolution = config.resolution or pipe.unet.config.sample_size * pipe.vae_scale_factor
    if resolution % pipe.vae_scale_factor:
        raise InputError(f"--resolution {resolution}: take a multiple of {pipe.vae_scale_factor} for this model")
    _warn_of_long_captions(manifest, pipe.tokenizer)
    return Job(config, manifest, pipe, component_hashes(model), Preprocessing(resolution, config.center_crop, config.random_flip),
               noise, _trainable(config, pipe.unet))


def _check_values(config):
    for name in ("train_batch_size", "gradient_accumulation_steps", "max_train_steps", "rank"):
        if getattr(config, name) < 1:
            raise InputError(f"--{name} {getattr(config, name)}: it should be 1 or more")
    if not 0 <= config.caption_dropout <= 1:
        raise InputError(f"--caption_dropout {config.caption_dropout}: it is a share, from 0 to 1")
    for name, known in (("save_dtype", DTYPES), ("lr_scheduler", SCHEDULES), ("mixed_precision", (None, "no", "fp16", "bf16"))):
        if getattr(config, name) not in known:
            raise InputError(f"--{name} {getattr(config, name)}: take one of {', '.join(filter(None, known))}")


def _megabytes(pipe, config):
    """Disk that the checkpoint will take, and some more."""
    parts = () if config.lora else (pipe.unet, pipe.vae, pipe.text_encoder)
    return round(50 + sum(p.numel() for part in parts for p in part.parameters()) * DTYPES[config.save_dtype].itemsize / 1e6)


def _warn_of_long_captions(manifest, tokenizer):
    long = too_long(manifest.captions(), tokenizer)
    if long and os.environ.get("RANK", "0") == "0":  # one of several processes
        line = f"warning: {len(long)} captions are cut at the model's {tokenizer.model_max_length} tokens, the first: {long[0]}"
        Console(stderr=True).print(line, markup=False, soft_wrap=True)


def _trainable(config, unet):
    """The parameters to train, of the UNet or of a LoRA put on it; the start of a LoRA depends on the seed alone."""
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
