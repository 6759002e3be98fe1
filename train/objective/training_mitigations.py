"""What training can do against memorization, on the same plan for comparison: other captions or embeddings, skipped samples."""
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from rotescope.common.errors import InputError
from rotescope.datasets.captions.perturbation import PERTURBATIONS, TRAIN_PROBABILITY, mix_up, perturbation, token_words
from rotescope.models.prediction import eps_slope


@dataclass(frozen=True)
class TrainingMitigation:
    """Named as in the authors' scripts; nothing by default."""
    rand_noise_lam: float = 0.0           # e + lambda N(0, I) for each text embedding e  (Somepalli et al. 2023b, section 6)
    mixup_noise_lam: float | None = None  # s e + (1 - s) e', s from Beta(m, 1), e' of another sample of the batch  (there)
    hard_threshold: float | None = None   # skip samples whose prediction gap reaches it  (Wen et al. 2024, section 4.3)
    mem_ratio: float | None = None        # skip samples whose loss, times this, is below its noise level's mean, which is a
    arr_ema_decay: float = 0.8            # moving average with this decay  (IET-AGC: Liu et al., ECCV 2024, arXiv 2407.15328)
    caption_perturbation: str | None = None  # of captions.perturbation.PERTURBATIONS, and the share of the samples that get it
    caption_perturbation_probability: float = TRAIN_PROBABILITY

    def draw(self, captions, shape, generator):
        """captions: (B,), shape: (L, D) of an embedding -> the fields of a Batch that the disturbance needs.

        The empty caption, 0, trains the unconditional branch: it stays as it is, and is no one's partner.
        """
        fields, empty = {}, captions == 0
        if self.mixup_noise_lam is not None:
            order = torch.randperm(len(captions), generator=generator)
            share = torch.rand((), generator=generator) ** (1 / self.mixup_noise_lam)  # Beta(m, 1) has the distribution s^m
            fields |= {"partners": captions[order], "shares": share.where(~(empty | empty[order]), 1)}
        if self.rand_noise_lam:
            fields["text_noise"] = torch.randn(len(captions), *shape, generator=generator) * ~empty[:, None, None]
        if self.caption_perturbation:
            fields["caption_seeds"] = torch.randint(2 ** 62, (len(captions),), generator=generator)
        return fields

    def disturbed(self, condition, batch, texts):
        """A condition, and the tables of embeddings that it came from -> the condition that the denoiser is to be trained on."""
        condition = dict(condition)
        for name in texts if batch.partners is not None else ():
            mixed = mix_up(condition[name], texts[name][batch.partners], batch.shares)
            condition[name] = mixed.ceil() if name == "mask" else mixed   # a token counts if it does in either caption
        if batch.text_noise is not None:
            condition["text"] = condition["text"] + self.rand_noise_lam * batch.text_noise
        return condition

    def kept(self, conditional, unconditional, kind, alpha, sigma):
        """Predictions (B, C, h, w) -> (B,), 1 where || eps_cond - eps_uncond ||_2 is below the threshold, else 0."""
        slope = torch.as_tensor(eps_slope(kind, alpha, sigma)).to(conditional.device)
        gaps = (slope * (conditional - unconditional).float()).flatten(1).norm(dim=1)
        return (gaps < self.hard_threshold).float()


@dataclass(frozen=True)
class PerturbedCaptions:
    """Captions changed anew at every showing, as the authors do, since variants drawn once would repeat, or fill the disk.

    An own seed for each sample makes the text the same in any process, part of a batch or resumed run; the cache stays as it is,
    and only what a batch has changed is encoded, by the frozen text encoder, which stays on the accelerator for it.
    """
    change: Callable[[str, np.random.Generator], str]
    encode: Callable[[list[str]], dict[str, torch.Tensor]]  # texts -> condition, on the CPU

    @classmethod
    def of(cls, mitigation, tokenizer, encode):
        """What a TrainingMitigation asks for; None if it perturbs no caption. InputError on what cannot be drawn."""
        if not mitigation.caption_perturbation:
            return None
        kind = PERTURBATIONS[mitigation.caption_perturbation]
        words = token_words(tokenizer) if kind.needs_vocabulary else ()
        return cls(perturbation(mitigation.caption_perturbation, kind.train_n, words,
                                mitigation.caption_perturbation_probability), encode)

    def texts(self, own, seeds):
        """Captions, and seeds (B,) -> the captions as shown. The empty one trains the unconditional branch and stays empty."""
        return [text and self.change(text, np.random.default_rng(seed)) for text, seed in zip(own, seeds.tolist(), strict=True)]

    def replaced(self, condition, own, seeds):
        """A condition of B captions -> the same with the rows of those that are shown changed."""
        shown = self.texts(own, seeds)
        rows = [row for row, (before, after) in enumerate(zip(own, shown, strict=True)) if before != after]
        fresh = self.encode([shown[row] for row in rows]) if rows else {}
        return condition | {name: condition[name].index_copy(0, torch.tensor(rows), t) for name, t in fresh.items()}


class LossBank:
    """IET-AGC's memory bank: the mean loss m[t] at each noise level, far below which a sample may be known by heart.

    A sample is skipped if mem_ratio · loss < m[t]. After the step, sample by sample, m[t] <- d m[t] + (1 - d) loss, d = decay,
    from m[t] = 0 on, so that a level's first sample is kept. The authors take the mean loss of the kept; here a skipped sample
    counts 0 in the batch's, as under hard_threshold, so that neither processes nor parts of a batch matter.
    """

    def __init__(self, levels, mem_ratio, decay):
        self.mean, self.mem_ratio, self.decay = torch.zeros(levels), mem_ratio, decay
        self.seen = []  # (2, B): levels and losses of the parts of a batch in progress

    def kept(self, losses, levels):
        """Losses (B,), levels (B,), -1 where a sample only fills the batch up -> (B,), 1 where the sample is kept, else 0."""
        losses = losses.detach()
        self.seen.append(torch.stack([levels.to(losses), losses]))
        return (self.mem_ratio * losses >= self.mean[levels].to(losses)).to(losses)

    def settle(self, accelerator):
        """After a step: take in the global batch in its order, whichever process saw which part of it."""
        mine = torch.stack(self.seen)[None].to(accelerator.device)          # (1, parts, 2, B)
        everyones = accelerator.gather(mine).cpu().permute(1, 0, 3, 2)      # (parts, processes, B, 2)
        for level, loss in (both for both in everyones.reshape(-1, 2).tolist() if both[0] >= 0):
            self.mean[int(level)] = self.decay * self.mean[int(level)] + (1 - self.decay) * loss
        self.seen.clear()


AUTHORS = {  # option -> the value in its authors' code; None where they name none, or one model's
    "caption_perturbation_probability": TRAIN_PROBABILITY, "rand_noise_lam": 0.1, "mixup_noise_lam": None, "hard_threshold": None,
    "mem_ratio": 1.25}
NAMES = (*PERTURBATIONS, *(option for option in AUTHORS if option != "caption_perturbation_probability"))


def named_mitigation(text):
    """One of NAMES, or NAME=VALUE -> what it sets in a FinetuneConfig; without VALUE the authors'. InputError on a bad one."""
    name, equals, value = text.partition("=")
    if name not in NAMES:
        raise InputError(f"no training mitigation is called {name!r}: take one of {', '.join(NAMES)}")
    option = "caption_perturbation_probability" if name in PERTURBATIONS else name
    try:
        number = float(value) if equals else AUTHORS[option]
    except ValueError as error:
        raise InputError(f"{text}: {value!r} is no number") from error
    if number is None:
        raise InputError(f"no value of {name} is published that would fit every model: write {name}=VALUE")
    return {option: number} | ({"caption_perturbation": name} if name in PERTURBATIONS else {})
