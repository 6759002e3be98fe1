"""Which numbers a recipe may hold: one table."""
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.util import find_spec

from rotescope.common.errors import InputError
from rotescope.datasets.captions.perturbation import PERTURBATIONS
from rotescope.models.memory_options import check_quantize
from rotescope.models.model_options import DTYPE_NAMES

WEIGHTING_SCHEMES = ("none", "logit_normal", "mode", "symmetric_exponential", "sigma_sqrt", "cosmap")
LORA_FORMATS = ("diffusers", "kohya")
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
LEAST_LEARNING_RATE = 1e-7  # where diffusers' polynomial schedule ends


@dataclass(frozen=True)
class Bound:
    """`holds` is true of the numbers that are good, and of no NaN; `says` ends the sentence "--option NUMBER: …"."""
    says: str
    holds: Callable[[float], bool]


BOUNDS = {
    Bound("it should be 1 or more", lambda v: v >= 1): (
        "train_batch_size", "gradient_accumulation_steps", "max_train_steps", "num_train_epochs", "rank", "resolution",
        "bucket_reso_steps", "min_bucket_reso", "max_bucket_reso", "checkpoints_total_limit", "lr_num_cycles",
        "validation_steps", "num_validation_images", "monitor_steps", "monitor_prompts", "monitor_seeds",
        "monitor_inference_steps"),
    Bound("it should be 0 or more", lambda v: v >= 0): (
        "checkpointing_steps", "learning_rate", "lr_warmup_steps", "adam_weight_decay", "noise_offset", "rand_noise_lam",
        "guidance_scale", "num_class_images"),
    Bound("it should be above 0", lambda v: v > 0): (
        "adam_epsilon", "max_grad_norm", "snr_gamma", "lora_alpha", "lr_power", "logit_std", "mixup_noise_lam", "hard_threshold",
        "mem_ratio", "prior_loss_weight", "exponential_scale"),
    Bound("it is a share, from 0 to 1", lambda v: 0 <= v <= 1): (
        "caption_dropout", "unmasked_weight", "ema_decay", "caption_perturbation_probability", "arr_ema_decay"),
    Bound("it should be 0 or more, and below 1", lambda v: 0 <= v < 1): ("adam_beta1", "adam_beta2"),
    Bound("it should be from -1 to 1.75", lambda v: -1 <= v <= 1.75): ("mode_scale",),  # Esser et al. 2024, equation 20
    Bound("it should be from 0 to 2^62", lambda v: 0 <= v <= 2 ** 62): ("seed", "plan_seed"),
    Bound("diffusers then sends one branch only; give a scale above 1", lambda v: v > 1): ("monitor_guidance_scale",),
    Bound("it is a share, above 0 and at most 1", lambda v: 0 < v <= 1): ("stop_at_copy_rate",),
}


def check_bounds(config):
    """InputError on a number that no run could have; None stands for a number that is not given."""
    numbers = {f.name: getattr(config, f.name) for f in fields(config) if isinstance(getattr(config, f.name), (int, float))}
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise InputError(f"--{name} {value}: it is no number that a run could have")
    for bound, names in BOUNDS.items():
        for name in names:
            if name in numbers and not bound.holds(numbers[name]):
                raise InputError(f"--{name} {numbers[name]}: {bound.says}")


def check_schedule(config, total, size):
    """InputError if the learning rate has no way to go, in `total` steps of `size` samples."""
    if config.lr_scheduler != "polynomial":
        return
    if config.learning_rate * (size if config.scale_lr else 1) <= LEAST_LEARNING_RATE:
        raise InputError(f"--lr_scheduler polynomial falls to {LEAST_LEARNING_RATE:g}: --learning_rate {config.learning_rate:g} "
                         "is no higher, raise it")
    if config.lr_warmup_steps >= total:
        raise InputError(f"--lr_scheduler polynomial falls after --lr_warmup_steps {config.lr_warmup_steps}, and the run ends "
                         f"after {total}: warm up for fewer")


def check_values(config):
    """InputError on a value that no run could have."""
    check_bounds(config)
    for name, known in (("save_dtype", DTYPE_NAMES), ("weighting_scheme", WEIGHTING_SCHEMES), ("lr_scheduler", SCHEDULES),
                        ("lora_format", LORA_FORMATS), ("mixed_precision", (None, "no", "fp16", "bf16")),
                        ("caption_perturbation", (None, *PERTURBATIONS))):
        if getattr(config, name) not in known:
            raise InputError(f"--{name} {getattr(config, name)}: take one of {', '.join(filter(None, known))}")
    if config.lora_format != "diffusers" and not config.lora:
        raise InputError(f"--lora_format {config.lora_format} is a LoRA's: add --lora")
    check_quantize(config.quantize)
    if config.quantize != "none" and not config.lora:
        raise InputError(f"--quantize {config.quantize} packs the weights, which cannot be trained then: add --lora")
    if config.train_text_encoder and not config.lora:
        raise InputError("--train_text_encoder trains a LoRA: add --lora")
    if config.train_text_encoder and (config.rand_noise_lam or config.mixup_noise_lam or config.hard_threshold is not None):
        raise InputError("this mitigation needs embeddings that stay the same: leave out --train_text_encoder or the mitigation")
    if config.use_8bit_adam and not find_spec("bitsandbytes"):
        raise InputError("--use_8bit_adam needs bitsandbytes, which is not installed: pip install 'rotescope[gpu]'")
    _check_class_pictures(config)
    for name in () if config.aspect_buckets else ("bucket_reso_steps", "min_bucket_reso", "max_bucket_reso"):
        if getattr(config, name) is not None:
            raise InputError(f"--{name} is for buckets: add --aspect_buckets true, or leave it out")
    if config.unmasked_weight and not config.masks:
        raise InputError("--unmasked_weight is for masks: name them with --masks")
    if config.report_to not in (None, "all"):
        check_tracker(config)
    if config.stop_at_copy_rate is not None and not config.monitor_steps:
        raise InputError(f"--stop_at_copy_rate {config.stop_at_copy_rate} needs measurements: add --monitor_steps")


def _check_class_pictures(config):
    """InputError where it cannot be told which class pictures are meant, or how they are called."""
    there = config.class_data is not None
    if there and config.num_class_images:
        raise InputError("--class_data has class pictures and --num_class_images draws them: give one of the two")
    if config.num_class_images and not config.class_prompt:
        raise InputError("--num_class_images draws class pictures: say of what with --class_prompt")
    if config.class_prompt is not None and not config.class_prompt.strip():
        raise InputError("--class_prompt is empty: write the caption that all class pictures have")
    for name in () if there or config.num_class_images else ("class_prompt", "prior_loss_weight"):
        if getattr(config, name) not in (None, 1.0):
            raise InputError(f"--{name} is for class pictures: name them with --class_data, or have them drawn with "
                             "--num_class_images")


def check_tracker(config):
    """InputError for a tracker that is not installed."""
    from accelerate.tracking import get_available_trackers
    trackers = [str(t) for t in get_available_trackers()]
    if config.report_to not in trackers:
        raise InputError(f"--report_to {config.report_to}: install it (tensorboard with pip install 'rotescope[trackers]'), or "
                         f"take one of {', '.join(trackers) or 'none'}")
