"""The training loop: a generator of StepResult. Callers log, save, stop.

One seeded generator on the CPU draws each global batch whole (images, captions, flips, timesteps, noise), and every process takes
its slice of it. So a seed gives the same weights twice, and the same samples whatever the number of processes.
"""
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields

import torch
from torch.nn.utils.rnn import pad_sequence

from rotescope.errors import RunError
from rotescope.train.latents import Encoded
from rotescope.train.objective import TARGETS, add_noise, loss_per_sample, min_snr_weight, rates


@dataclass(frozen=True)
class StepResult:
    step: int             # 1 ...
    loss: float           # mean over the global batch
    lr: float
    images: torch.Tensor  # (B,) which images the global batch showed


@dataclass(frozen=True)
class Batch:
    """B samples, tensors alike in their first dimension."""
    images: torch.Tensor           # (B,) rows of Encoded.moments
    captions: torch.Tensor         # (B,) rows of Encoded.embeddings; 0 where the caption is dropped
    flips: torch.Tensor            # (B,) 0 | 1
    timesteps: torch.Tensor        # (B,)
    noise: torch.Tensor            # (B, C, h, w)
    posterior_noise: torch.Tensor  # (B, C, h, w) draws the latents from the VAE's posterior

    def split(self, parts):
        """-> `parts` batches of B / parts samples each."""
        pieces = zip(*(getattr(self, f.name).chunk(parts) for f in fields(self)), strict=True)
        return [Batch(*piece) for piece in pieces]


def shuffled_passes(copies, size, generator):
    """copies: (n,) -> endless (2, size): image, and how often it came before. An epoch shows image i copies[i] times."""
    images = torch.repeat_interleave(copies)                               # (N,) with N = sum of copies
    nth = torch.arange(len(images)) - (copies.cumsum(0) - copies)[images]  # (N,) 0 ... copies - 1
    queue = torch.empty(2, 0, dtype=torch.long)
    while True:
        while queue.shape[1] < size:
            order = torch.randperm(len(images), generator=generator)
            queue = torch.cat([queue, torch.stack([images, nth])[:, order]], 1)
            nth = nth + copies[images]
        yield queue[:, :size]
        queue = queue[:, size:]


def global_batches(encoded: Encoded, copies, size, *, num_train_timesteps=1000, caption_dropout=0.0, seed=0) -> Iterator[Batch]:
    """Endless batches of `size` samples. Copy j of an image comes under its caption number j modulo the number of them."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.tensor([len(rows) for rows in encoded.captions])
    table = pad_sequence([torch.tensor(rows) for rows in encoded.captions], batch_first=True)  # (n, most captions)
    _, flips, channels, *side = encoded.moments.shape
    shape = (size, channels // 2, *side)
    for images, nth in shuffled_passes(torch.as_tensor(copies), size, generator):
        captions = table[images, nth % count[images]]
        dropped = torch.rand(size, generator=generator) < caption_dropout
        yield Batch(images, captions.masked_fill(dropped, 0), torch.randint(flips, (size,), generator=generator),
                    torch.randint(num_train_timesteps, (size,), generator=generator),
                    torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))


@dataclass(frozen=True)
class DenoisingLoss:
    """(denoiser, Batch) -> (B,) losses."""
    encoded: Encoded
    alphas_cumprod: torch.Tensor  # (T,)
    prediction_type: str
    device: torch.device
    snr_gamma: float | None = None

    def __call__(self, denoiser, batch):
        mean, std = self.encoded.moments[batch.images, batch.flips].chunk(2, 1)
        alpha, sigma = rates(self.alphas_cumprod, batch.timesteps)
        x0 = mean + std * batch.posterior_noise
        noisy = add_noise(x0, batch.noise, alpha, sigma)
        target = TARGETS[self.prediction_type](x0, batch.noise, alpha, sigma)
        context = self.encoded.embeddings[batch.captions]
        noisy, timesteps, context, target = (t.to(self.device) for t in (noisy, batch.timesteps, context, target))
        losses = loss_per_sample(denoiser(noisy, timesteps, context, return_dict=False)[0], target)
        if self.snr_gamma is None:
            return losses
        return losses * min_snr_weight(self.prediction_type, alpha, sigma, self.snr_gamma).to(self.device)


def training_steps(accelerator, denoiser, optimizer, lr_scheduler, batches, loss_of, max_grad_norm=1.0) -> Iterator[StepResult]:
    """One optimizer step for each global batch, gradients accumulated over accelerator.gradient_accumulation_steps parts of it.

    `denoiser` and `optimizer` are prepared, `lr_scheduler` is not. RunError on a loss that is no number, before it does harm.
    """
    world, parts = accelerator.num_processes, accelerator.gradient_accumulation_steps
    for step, batch in enumerate(batches, 1):
        lr, losses = lr_scheduler.get_last_lr()[0], []
        for i, part in enumerate(batch.split(world * parts)[accelerator.process_index::world], 1):
            with nullcontext() if i == parts else accelerator.no_sync(denoiser):
                loss = loss_of(denoiser, part).mean()
                accelerator.backward(loss)  # divides by the number of parts
            losses.append(loss.detach())
        mean = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
        if not math.isfinite(mean):
            raise RunError(f"the loss is {mean} at step {step}, learning rate {lr:g}: lower --learning_rate")
        accelerator.clip_grad_norm_(denoiser.parameters(), max_grad_norm)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        yield StepResult(step, mean, lr, batch.images)
