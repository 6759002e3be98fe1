"""Mitigations on the text embeddings of Stable Diffusion: noise, optimisation, re-anchoring, and the padding."""
from dataclasses import dataclass
from functools import partial

import torch

from rotescope.common.errors import InputError
from rotescope.datasets.captions.perturbation import add_noise
from rotescope.mitigate.contract.mitigation import COUNT, NOT_NEGATIVE, GuidanceRun, Mitigation, check_ranges
from rotescope.mitigate.contract.prediction import combine
from rotescope.mitigate.denoiser.first_step import FirstStep, at_least_float, descend, gradients, norms


@dataclass(frozen=True)
class CaptionNoise(Mitigation):
    """e + λ n, n ~ N(0, I): Somepalli et al., NeurIPS 2023, section 5; λ = 0.1. Each image draws its own, by seed and prompt.

    The conditional embedding alone, special tokens included; whether the authors' reached the unconditional one is not known.
    """
    scale: float = 0.1
    families = ("sd",)

    def __post_init__(self):
        check_ranges(self, scale=NOT_NEGATIVE)

    def prepare(self, call):
        with torch.no_grad():
            cond, uncond = call.encode_text()
            noisy = [add_noise(e, call.rng(i, "caption noise"), self.scale) for i, e in enumerate(cond)]
            call.replace_embeddings(torch.stack(noisy), uncond)


# ----- by the prediction gap

@dataclass(frozen=True)
class PromptOptimisation(Mitigation):
    """Down min_e ‖ε(x_T, e) − ε(x_T, ∅)‖₂: Wen et al., Detecting, Explaining, and Mitigating Memorization, ICLR 2024, section 4.

    AdamW on the embedding of each image, its first token (BOS) frozen, at the first timestep; until the norm is at most
    `target`, at most `iterations` steps. The authors take one norm over all images of a prompt, so that their 3 means
    3/√n an image; here it is an image's own. It depends on model and resolution: find it anew from ordinary prompts.
    """
    target: float = 3.0
    learning_rate: float = 0.05
    iterations: int = 10
    families = ("sd",)
    looks_inside = True
    differentiates = ("unet",)

    def __post_init__(self):
        check_ranges(self, learning_rate=NOT_NEGATIVE, iterations=COUNT)

    def prepare(self, call):
        with gradients():
            first = FirstStep(call)

            def gap(rest, images):
                return norms(first.difference(first.noise[images], images, with_bos(rest, images)))

            def with_bos(rest, images):
                return torch.cat([first.cond[images, :1], rest.to(first.cond.dtype)], 1)

            optimizer = partial(torch.optim.AdamW, lr=self.learning_rate)
            rest, _ = descend(at_least_float(first.cond[:, 1:]), gap, self.target, optimizer, self.iterations)
            call.replace_embeddings(with_bos(rest, slice(None)), first.uncond)


@dataclass(frozen=True)
class PromptReanchoring(Mitigation):
    """Chen et al., Enhancing Privacy-Utility Trade-offs (PRSS), CVPR 2025, without its search by a language model.

    ε(e*) is the prediction under the optimised embedding (see PromptOptimisation), ε(e) under the prompt's own, s the guidance
    scale. An image whose gap at x_T was above `target` is, whenever m = ‖ε(e*) − ε(∅)‖₂ is above it again, guided by
        ε(e) + s′ (ε(e*) − ε(e)) + (s − s′)(ε(e*) − ε(∅)),   s′ = min(s (m − a)/(M − a), s),   a = (s·target − M)/(s − 1),
    which is plain guidance at m = target and turns wholly away from the prompt's own prediction at m = M. One more row for each
    step of an image at which it is.
    """
    target: float = 3.0
    full: float = 5.0            # M
    learning_rate: float = 0.05
    iterations: int = 10
    families = ("sd",)
    looks_inside = True
    differentiates = ("unet",)

    def __post_init__(self):
        if not 0 < self.target < self.full:
            raise InputError(f"target={self.target} and full={self.full}: the first must be above 0 and below the second")
        check_ranges(self, learning_rate=NOT_NEGATIVE, iterations=COUNT)

    def prepare(self, call):
        with torch.no_grad():
            own = call.encode_text()[0]
        PromptOptimisation(self.target, self.learning_rate, self.iterations).prepare(call)
        call.memory[self] = own, (call.embeddings[0] != own).flatten(1).any(1)

    def begin(self, n, guidance_scale, device):
        return ReanchoringRun(self, n, guidance_scale, device)


class BothBranches(GuidanceRun):
    """A run that needs both predictions at every step."""

    def __init__(self, settings, n, guidance_scale, device):
        self.settings, self.scale = settings, guidance_scale
        self.every = torch.ones(n, dtype=torch.bool, device=device)

    def branches(self, timestep):
        return self.every, self.every


class ReanchoringRun(BothBranches):
    def guide(self, step):
        plain = combine(step.cond, step.uncond, torch.full_like(step.gap, self.scale))
        own, triggered = step.call.memory[self.settings]
        far = triggered & (step.gap > self.settings.target)
        own = step.denoise(far, encoder_hidden_states=own)
        return torch.where(_wide(far, plain), reanchored(step.cond, own, step.uncond, step.gap, self.scale, self.settings), plain)


def reanchored(changed, own, uncond, gap, scale, settings):
    """The formula of PromptReanchoring; predictions (n, …), gap (n,)."""
    a = (scale * settings.target - settings.full) / (scale - 1)
    share = _wide((scale * (gap - a) / (settings.full - a)).clamp(max=scale).to(own.dtype), own)
    return own + share * (changed - own) + (scale - share) * (changed - uncond)


def _wide(per_image, like):
    return per_image.view(-1, *[1] * (like.dim() - 1))


# ----- the padding

def token_ids(tokenizer, texts, device):
    """n texts as the pipeline cuts them: ids (n, tokens), and the place (n,) of the end token."""
    ids = tokenizer(texts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length,
                    return_tensors="pt").input_ids.to(device)
    return ids, (ids == tokenizer.eos_token_id).int().argmax(1)


@dataclass(frozen=True)
class PadChange(Mitigation):
    """Kim & No, Memorization in Stable Diffusion Is Unexpectedly Driven by CLIP Embeddings, CVPR 2026 Findings, section 4 (i).

    Pad with `!` (as Stable Diffusion 2 does) instead of the end token before a text is encoded, in both halves as in the
    authors' code; then set the conditional embedding of the end token to zero. At no cost.
    """
    pad: str = "!"
    zero_end: bool = True
    families = ("sd",)

    def prepare(self, call):
        if call.get("prompt") is None:
            raise InputError("a change of padding encodes the prompts itself: give `prompt`, and name it before mitigations that "
                             "change embeddings")
        if self.pad not in call.pipe.tokenizer.get_vocab():
            raise InputError(f"pad={self.pad!r} is no token of this pipeline's tokenizer: take another one")
        with torch.no_grad():
            texts, negative = call.prompts, call.get("negative_prompt")
            negatives = list(negative) if isinstance(negative, list | tuple) else [negative or ""]
            cond, end = self._encode(call, texts)
            uncond, _ = self._encode(call, [text for text in negatives for _ in range(call.n // len(negatives))])
            if self.zero_end:
                cond[torch.arange(call.n), end] = 0
            call.replace_embeddings(cond, uncond)

    def _encode(self, call, texts):
        tokenizer = call.pipe.tokenizer
        ids, end = token_ids(tokenizer, texts, call.device)
        padding = torch.arange(ids.shape[1], device=ids.device) > end[:, None]
        if call.get("clip_skip"):
            raise InputError("pad-change encodes the prompt to its last layer: leave clip_skip out")
        encoder = call.pipe.text_encoder
        return encoder(ids.masked_fill(padding, tokenizer.get_vocab()[self.pad]))[0].to(encoder.dtype), end


@dataclass(frozen=True)
class PadMask(Mitigation):
    """Kim & No, as PadChange, section 4 (ii): the first 70 % of the padding's conditional embeddings set to zero. At no cost."""
    ratio: float = 0.7
    families = ("sd",)

    def __post_init__(self):
        if not 0 <= self.ratio <= 1:
            raise InputError(f"ratio={self.ratio}: give a share from 0 to 1")

    def prepare(self, call):
        with torch.no_grad():
            _, end = token_ids(call.pipe.tokenizer, call.prompts, call.device)
            cond, uncond = call.encode_text()
            place = torch.arange(cond.shape[1], device=cond.device) - end[:, None]  # 1 is the first of the padding
            padding = cond.shape[1] - 1 - end
            masked = (place > 0) & (place <= (padding * self.ratio).long()[:, None])
            call.replace_embeddings(cond.masked_fill(masked[..., None], 0), uncond)
