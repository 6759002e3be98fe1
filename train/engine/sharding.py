"""Weights or optimizer states in shards (FSDP, DeepSpeed): what that rules out, and how the weights come together."""
from accelerate.utils import DistributedType

from rotescope.common.errors import InputError

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
NEEDS_WHOLE_WEIGHTS = ("checkpointing_steps", "resume_from_checkpoint", "use_ema", "validation_prompts", "monitor_steps")
USUAL_STEPS = 500  # between checkpoints, as in diffusers' scripts


def check_sharding(accelerator, config):
    """InputError on options that need the whole model in one process, where no process has it."""
    kind = accelerator.distributed_type
    if kind not in SHARDED:
        return
    for name in NEEDS_WHOLE_WEIGHTS:
        if getattr(config, name):
            raise InputError(f"--{name} does not go with {kind.value}: leave it out, or launch without sharding")
    if config.quantize != "none":
        raise InputError(f"--quantize does not go with {kind.value}: leave it out, or launch without sharding")
    if kind == DistributedType.DEEPSPEED:
        if max(config.gradient_accumulation_steps, accelerator.gradient_accumulation_steps) > 1:
            raise InputError("--gradient_accumulation_steps does not go with DEEPSPEED, here or in its launch file: "
                             "take a larger --train_batch_size")
        if config.class_data or config.num_class_images:  # their gradients are added to those of the training pictures
            raise InputError("class pictures do not go with DEEPSPEED: leave them out, or launch with FSDP or without sharding")
        plugin = accelerator.state.deepspeed_plugin  # it would read the size from a data loader, and there is none
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.train_batch_size


def rhythm(accelerator, config):
    """-> every how many steps a checkpoint is kept, 0 for never; how many of them stay, None for all.

    Nobody who is not asked has room for many: AdamW's makes three times the model's weights.
    """
    if config.checkpointing_steps is not None:
        return config.checkpointing_steps, config.checkpoints_total_limit
    return 0 if accelerator.distributed_type in SHARDED else USUAL_STEPS, config.checkpoints_total_limit or 1


def settle(accelerator, model, job):
    """Bring the trained parts, whole, to the CPU; `model` is job.predictor as prepared."""
    if accelerator.distributed_type not in SHARDED:
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        job.predictor.cpu()
        return
    weights = accelerator.get_state_dict(model)
    for name in list(job.predictor.parts):
        part = job.pipe.components[name]  # FSDP may have wrapped the other reference to it
        fresh = type(part).from_config(part.config) if name == job.denoiser else type(part)(part.config)
        for adapter, about in getattr(part, "peft_config", {}).items():
            fresh.add_adapter(about, adapter)
        if accelerator.is_main_process:
            prefix = f"parts.{name}."
            fresh.load_state_dict({k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)})
        job.predictor.parts[name] = fresh
        setattr(job.pipe, name, fresh)
