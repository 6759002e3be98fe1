"""Checkpoints of a training in progress: whole or absent, and resumed to the end equal to the uninterrupted run, bit for bit.

    checkpoint-500/state.safetensors   weights (of a LoRA), optimizer, moving average, random states, place in the data, counts
    checkpoint-500/state.json          step, losses, and what a run that resumes must have in common with this one
    checkpoint-500/history.json        the options, and where earlier starts of this run began and had others
    checkpoint-500/unet/               the trained model, or pytorch_lora_weights.safetensors: loads in a stock pipeline
"""
import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rotescope.common.errors import InputError, RunError
from rotescope.common.outputs import write_json
from rotescope.common.settings import plain
from rotescope.train.checkpoints.export import load_trained, save_trained
from rotescope.train.checkpoints.output_folder import RECORD, checkpoints, discard, drop_later, durable_folder
from rotescope.train.objective.training_mitigations import TrainingMitigation

STATE = "state.safetensors"
HISTORY = "history.json"
ALIKE = ("seed", "lora", "train_text_encoder", "rank", "lora_alpha", "lora_layers", "use_ema", "use_8bit_adam", "caption_dropout",
         "resolution", "center_crop", "random_flip",  # what the state depends on, and what the model is asked for:
         "snr_gamma", "noise_offset", "weighting_scheme", "logit_mean", "logit_std", "mode_scale", "exponential_scale",
         "guidance_scale",
         *(f.name for f in fields(TrainingMitigation)))  # other options may change from start to start, and history.json says so
NEWER = {   # checkpoints of earlier versions are as if they had been so
    "prior_loss_weight": 1.0, "aspect_buckets": False, "bucket_reso_steps": None, "min_bucket_reso": None,
    "max_bucket_reso": None, "unmasked_weight": 0.0, "exponential_scale": 4.0}
MEANT = {"data": ": see that --train_data, the pictures that can be read there and the plan are what they were",
         "global batch": ": it is processes × train_batch_size × gradient_accumulation_steps, keep that product"}


def save_checkpoint(run, out, limit=None):
    """Every process calls it; the main one writes OUT/checkpoint-STEP and then removes the oldest beyond `limit`.

    Later ones than the last of this run are another history's: they go when this one is on the disk and not yet in its place.
    """
    random_states = _random_states(run.accelerator)
    if run.accelerator.is_main_process:
        tensors, rest = flattened(_state(run, random_states))
        if not all(w.isfinite().all() for w in run.job.parameters):
            raise RunError(f"the weights are no numbers after step {run.step}: lower --learning_rate")
        with durable_folder(Path(out) / f"checkpoint-{run.step}") as folder:
            save_trained(run.job, folder)
            save_file(tensors, folder / STATE)
            record = {"step": run.step, "losses": list(run.losses), "alike": identity(run), "rest": rest}
            (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            write_json(folder / HISTORY, {"config": _options(run), "starts": run.starts})
            drop_later(out, run.saved)
        for old in checkpoints(out)[:-limit] if limit else ():
            discard(old)
    run.saved = run.step
    run.accelerator.wait_for_everyone()


def restore(run, folder):
    """Put a run that has not begun where the checkpoint stands. InputError if it is damaged or another run's."""
    if not (folder / HISTORY).exists():
        raise InputError(f"{folder} lacks its {HISTORY}: an earlier version made it, resume with that")
    try:
        record, history = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (RECORD, HISTORY))
        _check_alike(folder, record["alike"], identity(run))
        if record["step"] > run.total:
            raise InputError(f"{folder} is of step {record['step']}, and this run ends after {run.total}: train longer, or "
                             "resume from an earlier one")
        state = unflattened(load_file(folder / STATE), record["rest"])
        _check_scaler(folder, "scaler" in state, run.accelerator)
        _restore_weights(run, state, folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder} cannot be read ({error}): resume from another checkpoint") from error
    run.step = run.saved = record["step"]
    run.starts = [*history["starts"], {"step": run.step, "changed": _changed(history["config"], _options(run))}]
    run.served = state["served"]
    run.losses.extend(record["losses"])
    run.batches.restore(state["batches"])
    if run.prior:
        run.prior.batches.restore(state["class_batches"])
    if run.loss.bank:
        run.loss.bank.mean = state.get("mean_losses", run.loss.bank.mean)
    _restore_optimizer(run, state)
    _restore_random(run.accelerator, state["random"])


def identity(run):
    """What two runs must have in common for one to go on where the other stopped."""
    config, job = run.job.config, run.job
    options = {name: getattr(config, name) for name in ALIKE}
    options |= {name: getattr(config, name) for name, usual in NEWER.items() if getattr(config, name) != usual}
    beside = {"class pictures": run.prior.manifest.hash} if run.prior else {}
    if job.masks:
        beside["masks"] = hashlib.sha256("\n".join(mask.key for mask in job.masks).encode()).hexdigest()
    model = job.hashes["base"] + (f" in {config.quantize}" if config.quantize != "none" else "")
    return json.loads(json.dumps({"model": model, "data": job.manifest.hash, "global batch": run.batches.size, **beside,
                                  **{f"--{k}": v for k, v in options.items()}}))


def _options(run):
    return plain(replace(run.job.config, hub_token=None))


def _changed(before, now):
    """-> {option: [what it was, what it is]}."""
    return {k: [before.get(k), v] for k, v in now.items() if before.get(k) != v}


def _check_alike(folder, theirs, ours):
    for what in dict.fromkeys((*ours, *theirs)):
        if theirs.get(what) != ours.get(what):
            raise InputError(f"{folder} is of another run: its {what} is {theirs.get(what)}, this one's {ours.get(what)}"
                             + MEANT.get(what, ""))


def _check_scaler(folder, theirs, accelerator):
    """Gradients scaled in half precision go on scaled; other precisions keep nothing, and may change from start to start."""
    ours = accelerator.scaler is not None
    if theirs and not ours:
        raise InputError(f"{folder} is of a run in fp16, whose gradient scaler it keeps, and this one has "
                         f"--mixed_precision {accelerator.mixed_precision}: pass --mixed_precision fp16, on a GPU")
    if ours and not theirs:
        raise InputError(f"{folder} is of a run that was not in fp16 and keeps no gradient scaler: pass the --mixed_precision "
                         "that it had, no or bf16")


def _state(run, random_states):
    state = {"optimizer": run.optimizer.state_dict()["state"], "batches": run.batches.state(), "random": random_states,
             "served": run.served}
    if run.job.config.lora:
        state["weights"] = dict(enumerate(run.job.parameters))
    if run.ema:
        state["ema"] = dict(enumerate(run.ema.shadow_params))
    if run.prior:
        state["class_batches"] = run.prior.batches.state()
    if run.loss.bank:
        state["mean_losses"] = run.loss.bank.mean
    if run.accelerator.scaler is not None:
        state["scaler"] = run.accelerator.scaler.state_dict()
    return state


@torch.no_grad()
def _restore_weights(run, state, folder):
    if not run.job.config.lora:
        load_trained(run.job, folder)
    for i, w in enumerate(run.job.parameters if run.job.config.lora else ()):
        w.copy_(state["weights"][str(i)])


def _restore_optimizer(run, state):
    """Optimizer, learning rate, gradient scaler and moving average. The schedule is a function of the step alone."""
    groups = run.optimizer.state_dict()["param_groups"]
    optimizer = {int(i): values for i, values in state.get("optimizer", {}).items()}
    run.optimizer.load_state_dict({"state": optimizer, "param_groups": groups})
    run.schedule.last_epoch = run.step
    rates = [base * factor(run.step) for base, factor in zip(run.schedule.base_lrs, run.schedule.lr_lambdas, strict=True)]
    for group, lr in zip(run.optimizer.param_groups, rates, strict=True):
        group["lr"] = lr
    run.schedule._last_lr = rates
    if run.accelerator.scaler is not None:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    if run.ema:
        shadows = [state["ema"][str(i)] for i in range(len(run.ema.shadow_params))]
        run.ema.shadow_params = [s.to(p.device) for s, p in zip(shadows, run.job.parameters, strict=True)]
        run.ema.optimization_step = run.step


def _random_states(accelerator):
    """-> states of torch's own generators, a row a process. The data has a generator of its own."""
    states = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return {k: accelerator.gather(v[None].to(accelerator.device)).cpu() for k, v in states.items()}


def _restore_random(accelerator, states):
    def own(rows):
        return rows[accelerator.process_index % len(rows)].clone()  # torch reads a view from where its storage begins
    torch.set_rng_state(own(states["cpu"]))
    if "cuda" in states and accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(own(states["cuda"]), accelerator.device)


# ----- trees of tensors and numbers, as two flat dicts

def flattened(tree, prefix=""):
    """Nested dict -> {path: tensor on the CPU, contiguous and its own}, {path: anything else}."""
    tensors, rest = {}, {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            for flat, more in zip((tensors, rest), flattened(value, f"{path}/"), strict=True):
                flat.update(more)
        elif isinstance(value, torch.Tensor):
            tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        else:
            rest[path] = value
    return tensors, rest


def unflattened(tensors, rest):
    """The inverse; keys are text."""
    tree = {}
    for path, value in {**tensors, **rest}.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree
