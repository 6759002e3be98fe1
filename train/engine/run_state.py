"""A training in progress: what changes from step to step, held together so that it can be kept and taken up again."""
import math
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import islice

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from rotescope.train.encodings.encode import encode_texts
from rotescope.train.engine.job import Job
from rotescope.train.engine.passes import ShuffledPasses
from rotescope.train.engine.steps import DenoisingLoss, GlobalBatches, Prior, training_steps
from rotescope.train.objective.objective import draw_levels
from rotescope.train.objective.training_mitigations import LossBank, PerturbedCaptions, TrainingMitigation

OWN_STREAM = 1_000_003  # between seeds: what drops out in a process is no echo of the data's draws, nor of another process's
CLASS_STREAM = 2_000_003  # what is drawn of class pictures is no echo either


@dataclass
class Run:
    job: Job
    accelerator: Accelerator
    model: torch.nn.Module                    # prepared
    optimizer: torch.optim.Optimizer          # prepared
    schedule: torch.optim.lr_scheduler.LambdaLR
    batches: GlobalBatches
    loss: DenoisingLoss
    ema: EMAModel | None
    total: int                                # steps of the whole run
    prior: Prior | None                       # the class pictures beside the training pictures, if there are any
    served: torch.Tensor                      # (n,) how often each image was shown
    losses: deque = field(default_factory=lambda: deque(maxlen=100))
    step: int = 0
    saved: int = 0                            # step of the last checkpoint, of this start or the one that it resumed from
    starts: list = field(default_factory=lambda: [{"step": 0}])  # where the run began and was resumed, with options changed then
    notes: dict = field(default_factory=dict)  # what else goes into rotescope.json

    def steps(self):
        """Iterator of StepResult up to the last; the model is trained in place."""
        config = self.job.config
        batches = islice(self.batches, max(0, self.total - self.step))
        for result in training_steps(self.accelerator, self.model, self.optimizer, self.schedule, batches, self.loss,
                                     config.max_grad_norm, self.step, self.prior):
            self.step = result.step
            if self.loss.bank:
                self.loss.bank.settle(self.accelerator)
            self.losses.append(result.loss)
            self.served += result.images.bincount(minlength=len(self.served))
            if self.ema:
                self.ema.step(self.job.parameters)
            yield result

    @contextmanager
    def averaged(self):
        """The model with the moving average for its weights, if there is one, and in eval mode."""
        if self.ema:
            self.ema.store(self.job.parameters)
            self.ema.copy_to(self.job.parameters)
        self.job.predictor.eval()
        try:
            yield
        finally:
            self.job.predictor.train()
            if self.ema:
                self.ema.restore(self.job.parameters)


def batch_size(config, processes):
    """Samples of an optimizer step, of all processes together."""
    return config.train_batch_size * config.gradient_accumulation_steps * processes


def total_steps(config, manifest, size, shapes=()):
    """Optimizer steps of the whole run, by `size` samples each, or where images have `shapes` by so many of one shape at most."""
    epochs = config.num_train_epochs
    if epochs is None:
        return config.max_train_steps
    return passes_of(manifest, size, shapes).steps_of(epochs) if shapes else math.ceil(epochs * manifest.copies / size)


def passes_of(manifest, size, shapes=()):
    """How a run goes through its images, as to how long its epochs are."""
    return ShuffledPasses([e.copies for e in manifest], shapes=shapes, size=size)


def start(job, encoded, accelerator, class_pictures=None):
    """-> the Run before its first step. Seeds torch's own generators, from which dropout is drawn.

    class_pictures: the Manifest and the Encoded of those for prior preservation, if there are any.
    """
    config, size = job.config, batch_size(job.config, accelerator.num_processes)
    torch.manual_seed(config.seed + OWN_STREAM * (1 + accelerator.process_index))
    _place(job, accelerator)
    total, optimizer = total_steps(config, job.manifest, size, job.shapes), _optimizer(config, job.parameters, size)
    schedule = get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=total,
                             num_cycles=config.lr_num_cycles, power=config.lr_power)
    model, optimizer = accelerator.prepare(job.predictor, optimizer)
    mitigation = TrainingMitigation(**{f.name: getattr(config, f.name) for f in fields(TrainingMitigation)})
    levels = draw_levels(job.noise, config.weighting_scheme, config.logit_mean, config.logit_std, config.mode_scale,
                         config.exponential_scale)
    batches = GlobalBatches(encoded, [e.copies for e in job.manifest], size, levels, caption_dropout=config.caption_dropout,
                            noise_offset=config.noise_offset, seed=config.seed, mitigation=mitigation)
    loss = DenoisingLoss(encoded, job.noise, accelerator.device, config.snr_gamma, config.weighting_scheme, mitigation,
                         PerturbedCaptions.of(mitigation, job.pipe.tokenizer, partial(encode_texts, pipe=job.pipe)),
                         LossBank(len(job.noise), config.mem_ratio, config.arr_ema_decay) if config.mem_ratio else None,
                         config.unmasked_weight)
    ema = EMAModel(job.parameters, decay=config.ema_decay, foreach=True) if config.use_ema else None
    prior = _prior(job, class_pictures, size, levels, accelerator.device) if class_pictures else None
    return Run(job, accelerator, model, optimizer, schedule, batches, loss, ema, total, prior,
               torch.zeros(len(job.manifest), dtype=torch.long))


def _prior(job, class_pictures, size, levels, device):
    """As many class pictures a step as training pictures, in an order of their own, which leaves that of the training pictures
    as it is. No mitigation, caption dropout or min-SNR weight is theirs, as in diffusers' scripts."""
    config, (manifest, encoded) = job.config, class_pictures
    batches = GlobalBatches(encoded, [e.copies for e in manifest], size, levels, noise_offset=config.noise_offset,
                            seed=config.seed + CLASS_STREAM)
    loss = DenoisingLoss(encoded, job.noise, device, None, config.weighting_scheme)
    return Prior(manifest, batches, loss, config.prior_loss_weight)


def _place(job, accelerator):
    """As in diffusers' scripts, the weights under a LoRA may be as imprecise as the arithmetic; its own stay in float32. FSDP
    flattens both into one, and halves what it gathers itself."""
    sharded = accelerator.distributed_type == DistributedType.FSDP
    half = None if sharded else {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision)
    for weight in job.predictor.parameters() if half else ():
        if not weight.requires_grad and weight.is_floating_point():
            weight.data = weight.data.to(half)
    for layer in job.predictor.modules() if half else ():
        if getattr(layer, "compute_dtype", None):  # of a layer whose weights are packed
            layer.compute_dtype = half
    if job.config.train_text_encoder or job.config.caption_perturbation:  # then all encoders work in every step
        for part in job.frozen("text_encoder"):
            part.to(accelerator.device)


def _optimizer(config, parameters, size):
    lr = config.learning_rate * (size if config.scale_lr else 1)
    settings = {"lr": lr, "betas": (config.adam_beta1, config.adam_beta2), "weight_decay": config.adam_weight_decay,
                "eps": config.adam_epsilon}
    if config.use_8bit_adam:
        from bitsandbytes.optim import AdamW8bit
        return AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, **settings, fused=True)
