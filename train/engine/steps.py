"""The training loop: a generator of StepResult. Callers log, save, stop.

One seeded generator on the CPU draws each global batch whole (images, captions, flips, noise levels, noise), and every process
takes its slice of it. So a seed gives the same weights twice, and the same samples whatever the number of processes.
"""
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace

import torch
from torch.nn.utils.rnn import pad_sequence

from rotescope.common.errors import RunError
from rotescope.datasets.manifest import Manifest
from rotescope.models.prediction import TARGETS, noisy_latents
from rotescope.train.encodings.encode import Encoded
from rotescope.train.engine.passes import FILLS, ShuffledPasses
from rotescope.train.objective.objective import NoiseSchedule, flow_weight, loss_per_sample, min_snr_weight
from rotescope.train.objective.training_mitigations import LossBank, PerturbedCaptions, TrainingMitigation

NO_MITIGATION = TrainingMitigation()
OVERFLOWS = 50  # steps that a gradient scaler may leave out in a row; it halves its scale each time


@dataclass(frozen=True)
class StepResult:
    step: int             # 1 ...
    loss: float           # mean over the global batch
    lr: float
    images: torch.Tensor  # (≤ B,) which images the global batch showed


@dataclass(frozen=True)
class Batch:
    """B samples, tensors alike in their first dimension."""
    images: torch.Tensor           # (B,) rows of Encoded.images
    captions: torch.Tensor         # (B,) rows of Encoded.texts; 0 where the caption is dropped
    flips: torch.Tensor            # (B,) 0 | 1
    levels: torch.Tensor           # (B,) of the noise schedule
    noise: torch.Tensor            # (B, C, h, w)
    posterior_noise: torch.Tensor  # (B, C, h, w) draws the latents from the VAE's posterior
    text_noise: torch.Tensor | None = None  # (B, L, D), and
    partners: torch.Tensor | None = None    # (B,) rows of Encoded.texts, and
    shares: torch.Tensor | None = None      # (B,), if a mitigation disturbs the embeddings
    caption_seeds: torch.Tensor | None = None  # (B,), if one perturbs the captions
    counts: torch.Tensor | None = None  # (B,), where samples may only fill the batch up: 0 for these, else more than 0

    @property
    def shown(self):
        """-> the images that count."""
        return self.images if self.counts is None else self.images[self.counts > 0]

    def trimmed(self, parts):
        """-> the same without samples that only fill it up, but for those that it takes to split it into `parts`. The mean of
        losses times `counts` is then that of the samples that count."""
        if self.counts is None:
            return self
        real = len(self.shown)
        kept = math.ceil(real / parts) * parts
        columns = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        columns |= {"counts": (self.counts > 0).float() * kept / real}
        return Batch(**{name: column[:kept] for name, column in columns.items()})

    def split(self, parts):
        """-> `parts` batches of B / parts samples each."""
        columns = (getattr(self, f.name) for f in fields(self))
        pieces = zip(*([None] * parts if c is None else c.chunk(parts) for c in columns), strict=True)
        return [Batch(*piece) for piece in pieces]


class GlobalBatches:
    """Endless batches of `size` samples. Copy j of an image comes under its caption number j modulo the number of them."""

    def __init__(self, encoded: Encoded, copies, size, draw_levels, *, caption_dropout=0.0, noise_offset=0.0, seed=0,
                 mitigation=NO_MITIGATION):
        self.generator = torch.Generator().manual_seed(seed)
        self.passes = ShuffledPasses(copies, self.generator, encoded.shapes, size)
        self.count = torch.tensor([len(rows) for rows in encoded.captions])
        self.table = pad_sequence([torch.tensor(rows) for rows in encoded.captions], batch_first=True)  # (n, most captions)
        self.size, self.moments = size, encoded.images["moments"]
        self.text_shape = encoded.texts["text"].shape[1:] if encoded.texts else ()
        self.draw_levels, self.caption_dropout, self.noise_offset = draw_levels, caption_dropout, noise_offset
        self.mitigation = mitigation

    def __iter__(self):
        return self

    def __next__(self):
        size, drawn = self.size, {"generator": self.generator}
        images, nth = self.passes.take(size)
        captions = self.table[images, nth % self.count[images]]
        dropped = torch.rand(size, **drawn) < self.caption_dropout
        flips, channels, *side = self.moments.shape_of(0 if self.passes.shapes is None else images[0])
        shape = (size, channels // 2, *side)
        batch = Batch(images, captions.masked_fill(dropped, 0), torch.randint(flips, (size,), **drawn),
                      self.draw_levels(size, self.generator), torch.randn(shape, **drawn), torch.randn(shape, **drawn),
                      counts=None if self.passes.shapes is None else (nth != FILLS).float())
        if self.noise_offset:  # Guttenberg 2023, "Diffusion with offset noise"
            batch.noise.add_(torch.randn(*shape[:2], 1, 1, **drawn), alpha=self.noise_offset)
        return replace(batch, **self.mitigation.draw(batch.captions, self.text_shape, self.generator))

    def state(self):
        """-> the position in the data, as tensors."""
        return {"generator": self.generator.get_state(), "queue": self.passes.queue, "epoch": torch.tensor(self.passes.epoch)}

    def restore(self, state):
        self.generator.set_state(state["generator"])
        epoch = state["epoch"] if "epoch" in state else state["nth"][0] // self.passes.times[0]   # earlier versions kept `nth`
        self.passes.queue, self.passes.epoch = state["queue"], int(epoch)


@dataclass(frozen=True)
class DenoisingLoss:
    """(Predictor, Batch) -> (B,) losses."""
    encoded: Encoded
    schedule: NoiseSchedule
    device: torch.device
    snr_gamma: float | None = None
    weighting_scheme: str = "none"
    mitigation: TrainingMitigation = NO_MITIGATION
    captions: PerturbedCaptions | None = None
    bank: LossBank | None = None
    unmasked_weight: float = 0.0   # where there are masks, the least that a place of a picture counts, as in OneTrainer

    def __call__(self, predictor, batch):
        losses = self._losses(predictor, batch)
        return losses if batch.counts is None else losses * batch.counts.to(losses)

    def _losses(self, predictor, batch):
        asked, target = self.asked(batch)
        alpha, sigma = self.schedule.rates(batch.levels)
        prediction, mask = predictor(*asked), self.encoded.mask(batch)
        places = None if mask is None else mask.clamp(min=self.unmasked_weight).to(self.device)
        losses = loss_per_sample(prediction, target, places) * self._weight(alpha, sigma)
        if self.bank:
            fills = torch.zeros_like(batch.levels, dtype=torch.bool) if batch.counts is None else batch.counts == 0
            losses = losses * self.bank.kept(losses, batch.levels.masked_fill(fills, -1))
        if self.mitigation.hard_threshold is None:
            return losses
        with torch.no_grad():
            empty = self.encoded.condition(replace(batch, captions=torch.zeros_like(batch.captions)))
            unconditional = predictor(*asked[:2], self._there(empty))
        return losses * self.mitigation.kept(prediction.detach(), unconditional, self.schedule.target, alpha, sigma)

    def asked(self, batch):
        """-> what a Predictor is asked of a batch (noisy latents, timesteps, condition, captions or None), and the target."""
        alpha, sigma = self.schedule.rates(batch.levels)
        mean, std = self.encoded.moments(batch)
        x0 = mean + std * batch.posterior_noise
        noisy = noisy_latents(x0, batch.noise, alpha, sigma)
        target = TARGETS[self.schedule.target](x0, batch.noise, alpha, sigma)
        condition, words = self._told(batch)
        noisy, timesteps, target = (t.to(self.device) for t in (noisy, self.schedule.timesteps[batch.levels], target))
        return (noisy, timesteps, self._there(condition), words), target

    def _told(self, batch):
        """-> the condition, and beside it the captions if a text encoder is trained, which is then to encode them."""
        condition, own = self.encoded.condition(batch), [self.encoded.words[row] for row in batch.captions]
        if not self.encoded.texts:
            return condition, self.captions.texts(own, batch.caption_seeds) if self.captions else own
        if self.captions:
            condition = self.captions.replaced(condition, own, batch.caption_seeds)
        return self.mitigation.disturbed(condition, batch, self.encoded.texts), None

    def _there(self, condition):
        return {name: t.to(self.device) for name, t in condition.items()}

    def _weight(self, alpha, sigma):
        """-> (B,), or 1."""
        if self.schedule.target == "flow":
            return flow_weight(self.weighting_scheme, sigma).to(self.device)
        if self.snr_gamma is None:
            return 1.0
        return min_snr_weight(self.schedule.target, alpha, sigma, self.snr_gamma).to(self.device)


@dataclass(frozen=True)
class Prior:
    """Prior preservation (Ruiz et al. 2023, section 3.2): batches of class pictures, whose loss is added to that of the training
    pictures `weight` times, as in diffusers' DreamBooth scripts."""
    manifest: Manifest
    batches: GlobalBatches
    loss: DenoisingLoss
    weight: float

    def __call__(self, predictor, batch):
        return self.weight * self.loss(predictor, batch)


def training_steps(accelerator, denoiser, optimizer, lr_scheduler, batches, loss_of, max_grad_norm=1.0,
                   done=0, prior=None) -> Iterator[StepResult]:
    """One optimizer step for each global batch, gradients accumulated over accelerator.gradient_accumulation_steps parts of it,
    and then over as many of a batch of `prior`, if there is one.

    `denoiser` and `optimizer` are prepared, `lr_scheduler` is not; `done` steps were made before. RunError, before it does harm,
    on a loss or a gradient that is no number.
    """
    world, parts, overflows = accelerator.num_processes, accelerator.gradient_accumulation_steps, 0
    for step, batch in enumerate(batches, done + 1):
        lr, losses = lr_scheduler.get_last_lr()[0], []
        both = ((loss_of, batch), (prior, next(prior.batches))) if prior else ((loss_of, batch),)
        pieces = [(of, part) for of, whole in both
                  for part in whole.trimmed(world * parts).split(world * parts)[accelerator.process_index::world]]
        for i, (of, part) in enumerate(pieces, 1):
            with nullcontext() if i == len(pieces) else accelerator.no_sync(denoiser):
                loss = of(denoiser, part).mean()
                accelerator.backward(loss)  # divides by the number of parts
            losses.append(loss.detach())
        mean = accelerator.reduce(torch.stack(losses).sum() / parts, "mean").item()
        _stop_unless_finite("loss", mean, step, lr)
        norm = accelerator.clip_grad_norm_(denoiser.parameters(), max_grad_norm)
        overflows = _overflows(overflows, norm, step, lr, accelerator.scaler)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        yield StepResult(step, mean, lr, batch.shown)


def _overflows(before, norm, step, lr, scaler):
    """-> how many steps in a row a gradient scaler has left out, this one with them. Without one such a gradient is an error."""
    if norm is None or math.isfinite(norm):
        return 0
    if scaler is None:
        _stop_unless_finite("gradient", float(norm), step, lr)
    if before + 1 == OVERFLOWS:
        raise RunError(f"the gradients overflowed in fp16 in {OVERFLOWS} steps in a row, up to step {step}, learning rate "
                       f"{lr:g}: take bf16, or lower --learning_rate")
    return before + 1


def _stop_unless_finite(what, value, step, lr):
    if not math.isfinite(value):
        raise RunError(f"the {what} is {value} at step {step}, learning rate {lr:g}: lower --learning_rate")
