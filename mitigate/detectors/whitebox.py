"""Detectors that look inside, at the two predictions and at the cross-attention.

Δ = eps_cond − eps_uncond, always in ε and per image; a prompt's score is the mean over its n seeds.
"""
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

import torch
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cosine_similarity, interpolate

from rotescope.common.errors import InputError
from rotescope.mitigate.contract.prediction import combine
from rotescope.mitigate.denoiser.probe import Probe, cross_attention
from rotescope.models.prediction import rates_at


@dataclass(frozen=True)
class WhiteBox:
    """Looks at predictions; subclasses say what they see of each image.

    In ε, so not for flow matching: at its first step x is the noise itself, and the two predictions of ε are the same. Those of
    prediction_gap.py look at the velocity there.
    """
    families: ClassVar[tuple[str, ...]] = ("sd", "sdxl")
    n: int = 4                       # seeds a prompt
    num_inference_steps: int = 50    # decides the timesteps
    guidance_scale: float | None = 7.5    # of the way, and of what is guided

    def __post_init__(self):
        if self.n < 1 or self.num_inference_steps < 1:
            raise InputError(f"n={self.n}, num_inference_steps={self.num_inference_steps}: both must be 1 or more")
        if self.guidance_scale is not None and self.guidance_scale <= 1:
            raise InputError(f"guidance_scale={self.guidance_scale} makes no unconditional prediction: give a scale above 1")

    @property
    def rows(self):
        """Denoiser rows a prompt, where the scheduler calls once a step."""
        return 2 * self.n

    def observe(self, pipe, texts, noise_seeds):
        """-> a number for each image."""
        return self.look(Probe(pipe, texts, noise_seeds, self.num_inference_steps, self.guidance_scale), pipe, texts).tolist()

    def look(self, probe, pipe, texts):
        """-> (n images,)."""
        raise NotImplementedError

    def score(self, observed):
        """What the images of one prompt gave -> its score."""
        return fmean(observed)


@dataclass(frozen=True)
class Anisotropy(WhiteBox):
    """γ₁‖Δ_T‖₂ + γ₂ cos(eps_uncond, Δ) at the third-last timestep, both on pure noise (Asthana & Belagiannis, ICLR 2026).

    The cosine is over the channels at each latent pixel, then averaged, as in the released code. γ: the authors' for SD 1.4;
    they use (1, 0.1) for SD 2 and (2, 1) for Realistic Vision.
    """
    norm_weight: float = 1.0
    cosine_weight: float = 2.0

    @property
    def rows(self):
        return 4 * self.n

    def look(self, probe, pipe, texts):
        cond, uncond = probe.eps(probe.noise, probe.timesteps[-3:][0])
        cosine = cosine_similarity(uncond, cond - uncond, dim=1).flatten(1).mean(1)
        return self.norm_weight * next(probe.walk(1)).magnitude + self.cosine_weight * cosine


@dataclass(frozen=True)
class HessianVector(WhiteBox):
    """‖(H_c − H)(s_c − s)‖₂ at x_T, s = −ε/σ the score and H its Jacobian, by one JVP (Jeon et al., SAIL, ICML 2025).

    Two of its four rows carry a tangent and cost about twice as much.
    """
    @property
    def rows(self):
        return 4 * self.n

    def look(self, probe, pipe, texts):
        t = probe.timesteps[0]

        def score_gap(x):  # s_c − s = −Δ/σ
            cond, uncond = probe.eps(x, t)
            return (uncond - cond) / rates_at(probe.scheduler, t)[1]

        with sdpa_kernel(SDPBackend.MATH):  # the fused attentions have no forward-mode derivative
            return jvp(score_gap, (probe.noise,), (score_gap(probe.noise).to(probe.noise),))[1].flatten(1).norm(dim=1)


@dataclass(frozen=True)
class Confidence(WhiteBox):
    """Mean square of the guided ε on pure noise: the denoising confidence of Webster 2023 (arXiv 2305.08694).

    His score is the MSE between the noise z = σx and the end of one Heun step from σ_max to 0, which is an Euler step,
    z − σ ε̂: so it is σ² mean(ε̂²), and σ is a constant of the model.
    """
    def look(self, probe, pipe, texts):
        cond, uncond = probe.eps(probe.noise, probe.timesteps[0])
        guided = combine(cond, uncond, torch.full((probe.n,), float(probe.guidance_scale), device=cond.device))
        return guided.square().flatten(1).mean(1)


@dataclass(frozen=True)
class BrightEnding(WhiteBox):
    """Mean over all timesteps of ‖Δ_t ⊙ m‖₂ / mean(m), m the attention to the end token at the last one (Chen et al., ICLR 2025).

    m: mean over heads and over the down layers of the finest resolution. The authors sample twice, once for m; here the
    predictions of the one pass are kept, which costs a call instead of a pass.
    """
    @property
    def rows(self):
        return 2 * self.n * (self.num_inference_steps + 1)

    def look(self, probe, pipe, texts):
        looks = list(probe.walk())
        ends = end_tokens(pipe, texts)

        def to_end(name, probabilities):  # (n, heads, pixels, tokens) -> (n, pixels)
            return probabilities.mean(1)[torch.arange(probe.n), :, ends] if name.startswith("down_blocks") else None

        with cross_attention(probe, to_end) as maps:
            probe.outputs(looks[-1].x, looks[-1].timestep)
        mask = as_mask([m for m in maps if m is not None], looks[-1].x.shape[-2:])
        return torch.stack([masked_magnitude(look.gap, mask) for look in looks]).mean(0)


def masked_magnitude(gap, mask):
    """‖Δ ⊙ m‖₂ / mean(m) of each image: (n, C, h, w), (n, 1, h, w) -> (n,)."""
    return (gap * mask).flatten(1).norm(dim=1) / mask.flatten(1).mean(1)


def as_mask(maps, size):
    """Attention maps [(n, pixels)] of several resolutions -> mean of the finest ones (n, 1, h, w), at the latents' `size`."""
    pixels = max(m.shape[1] for m in maps)
    mean = torch.stack([m for m in maps if m.shape[1] == pixels]).mean(0)
    height = round((pixels * size[0] / size[1]) ** 0.5)
    mean = mean.unflatten(1, (1, height, pixels // height))
    return mean if mean.shape[-2:] == size else interpolate(mean, size, mode="bilinear")


def end_tokens(pipe, texts):
    """Where the end token of each text stands; whatever follows it is padding."""
    ids = pipe.tokenizer(list(texts), truncation=True, max_length=pipe.tokenizer.model_max_length).input_ids
    return torch.tensor([len(i) - 1 for i in ids])


@dataclass(frozen=True)
class AttentionEntropy(WhiteBox):
    """Entropy −Σ aᵢ ln aᵢ of the cross-attention, aᵢ its mean over heads and pixels on token i (Ren et al., ECCV 2024).

    metric "E": of layer `layer` (0…, in the order of use) at the first step. metric "D": of the mean over all layers, averaged
    over the last fifth of the steps, plus how far the part from the end token on has moved there since the first step,
    |Ē_end − E_first|; the released code leaves out the bars.
    """
    metric: str = "D"
    layer: int = 3

    def __post_init__(self):
        super().__post_init__()
        if self.metric not in ("D", "E"):
            raise InputError(f"metric={self.metric!r}: give D or E")

    @property
    def rows(self):
        return 2 * self.n * (self.num_inference_steps if self.metric == "D" else 1)

    def look(self, probe, pipe, texts):
        with cross_attention(probe, lambda name, probabilities: probabilities.float().mean((1, 2))) as layers:
            if self.metric == "E":
                probe.outputs(probe.noise, probe.timesteps[0])
                if not 0 <= self.layer < len(layers):
                    raise InputError(f"layer={self.layer}: this model has the layers 0 to {len(layers) - 1}")
                return entropy(layers[self.layer])
            steps = []
            for _ in probe.walk():
                steps.append(torch.stack(layers).mean(0))
                layers.clear()
        return entropy_d(torch.stack(steps), end_tokens(pipe, texts).to(steps[0].device))


def entropy(attention):
    """−Σ aᵢ ln aᵢ over the tokens: (…, tokens) -> (…)."""
    return torch.special.entr(attention).sum(-1)


def entropy_d(attention, ends):
    """Metric D: attention at each step (T, n, tokens), place of each end token (n,) -> (n,)."""
    late = max(len(attention) // 5, 1)
    summary = torch.arange(attention.shape[-1], device=ends.device) >= ends[:, None]  # (n, tokens): from the end token on
    moved = entropy(attention * summary)  # 0 ln 0 is 0
    return entropy(attention)[-late:].mean(0) + (moved[-late:].mean(0) - moved[0]).abs()
