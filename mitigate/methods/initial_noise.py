"""Mitigations on the initial noise x_T of Stable Diffusion, by what the denoiser says of it before the pipeline runs.

Δ(x) = ε(x, text) − ε(x, ∅) at the first timestep. Their numbers hang on the size of x_T (‖x_T‖ ≈ 128 for Stable Diffusion at
512 px) and of Δ: find them anew from ordinary prompts for another model or resolution.
"""
from dataclasses import dataclass
from functools import partial

import torch

from rotescope.common.errors import InputError
from rotescope.mitigate.contract.mitigation import COUNT, NOT_NEGATIVE, Mitigation, check_ranges
from rotescope.mitigate.contract.turning_point import Point, check_points
from rotescope.mitigate.denoiser.first_step import FirstStep, at_least_float, descend, gradients, norms
from rotescope.mitigate.methods.transition import TransitionGuidance


@dataclass(frozen=True)
class SharpnessStep(Mitigation):
    """Han et al., Adjusting Initial Noise to Mitigate Memorization, NeurIPS 2025, arXiv 2510.08625: "batch-wise".

    `steps` times x ← x − γ (Δ(x + d) − Δ(x)), d = ρ Δ(x)/‖Δ(x)‖₂: the step of sharpness-aware minimisation, without gradients.
    Then no guidance before `transition`. Each image by itself; the authors' numbers for Stable Diffusion 1.4 (2: ρ = 30, 4 steps,
    transition 917). `radius` is ρ, `rate` γ.
    """
    rate: float = 0.7
    radius: float = 50.0
    steps: int = 2
    transition: Point = 900
    families = ("sd",)
    looks_inside = True

    def __post_init__(self):
        check_ranges(self, rate=NOT_NEGATIVE, radius=NOT_NEGATIVE, steps=COUNT)
        check_points(transition=self.transition)

    def prepare(self, call):
        with torch.no_grad():
            first, images = FirstStep(call), torch.arange(call.n, device=call.device)
            x = at_least_float(first.noise)
            for _ in range(self.steps):
                here = first.difference(x, images)
                there = first.difference(x + self.radius * here / norms(here).view(-1, 1, 1, 1), images)
                x = x - self.rate * (there - here)
            call.replace_noise(x.to(first.noise.dtype))

    def begin(self, n, guidance_scale, device):
        return TransitionGuidance(before=0.0, transition=self.transition).begin(n, guidance_scale, device)


@dataclass(frozen=True)
class NoiseOptimisation(Mitigation):
    """Han et al., as SharpnessStep: "per-sample". AdamW on x down ‖Δ(x)‖₂ until it is at most `target`.

    The authors' numbers for Stable Diffusion 1.4 (target 0.7 to 1.5; 2: learning rate 0.1, target 5 to 20). Their code allows
    1000 steps; so does this.
    """
    target: float = 0.9
    learning_rate: float = 0.01
    iterations: int = 1000
    families = ("sd",)
    looks_inside = True
    differentiates = ("unet",)

    def __post_init__(self):
        check_ranges(self, learning_rate=NOT_NEGATIVE, iterations=COUNT)

    def prepare(self, call):
        with gradients():
            first = FirstStep(call)
            x, _ = descend(at_least_float(first.noise), lambda x, images: norms(first.difference(x, images)), self.target,
                           partial(torch.optim.AdamW, lr=self.learning_rate), self.iterations)
            call.replace_noise(x.to(first.noise.dtype))


@dataclass(frozen=True)
class SharpnessAwareNoise(Mitigation):
    """SAIL: Jeon et al., Understanding and Mitigating Memorization in Generative Models via Sharpness of Probability Landscapes,
    ICML 2025, arXiv 2412.04140, algorithm 2.

    Adam on x down ‖Δ(x + s/‖s‖₂)‖₂ + α ‖x‖₂, s = −Δ(x)/σ the difference of the two scores and `weight` α, until that is at most
    `target`, for at most `iterations` steps; where it is not, again from another noise of the image's own, up to `budget` in all,
    the target 0.1 higher after every third. The authors draw without end, and try `budget` at once; here the attempt that came
    lowest counts in the end. The direction s/‖s‖ is held constant in the gradient, as in sharpness-aware minimisation. As in
    their code, ‖Δ‖ stands for ‖s‖: σ is nearly 1 at x_T. That code steps along s for Stable Diffusion 2, as the paper says, but
    along Δ for 1.4. The defaults are those for 1.4 (2: α = 0.01, target 4 to 6).
    """
    target: float = 8.2
    weight: float = 0.05
    learning_rate: float = 0.05
    iterations: int = 10
    budget: int = 8
    families = ("sd",)
    looks_inside = True
    differentiates = ("unet",)

    def __post_init__(self):
        if self.budget < 1 or self.iterations < 1:
            raise InputError(f"budget={self.budget}, iterations={self.iterations}: give 1 or more")
        check_ranges(self, weight=NOT_NEGATIVE, learning_rate=NOT_NEGATIVE)

    def prepare(self, call):
        with gradients():
            first = FirstStep(call)
            best, lowest = at_least_float(first.noise), None
            images = torch.arange(call.n, device=call.device)
            for attempt in range(self.budget):
                target = self.target + 0.1 * (attempt // 3)
                start = best if attempt == 0 else self._draw(call, first, images, attempt)
                end, losses = descend(start, lambda x, k, images=images: self.loss(first, x, images[k]), target,
                                      partial(torch.optim.Adam, lr=self.learning_rate), self.iterations)
                if lowest is None:
                    best, lowest = end, losses
                better = losses < lowest[images]
                best[images[better]], lowest[images[better]] = end[better], losses[better]
                images = images[losses > target]
                if not len(images):
                    break
            call.replace_noise(best.to(first.noise.dtype))

    def loss(self, first, x, images):
        """x (k, C, h, w) -> (k,)."""
        with torch.no_grad():
            score = -first.difference(x, images)                     # times σ > 0, which its direction does not see
        ahead = x + score / norms(score).view(-1, 1, 1, 1)
        return norms(first.difference(ahead, images)) + self.weight * norms(x)

    @staticmethod
    def _draw(call, first, images, attempt):
        """Another noise for each of the images, by seed and prompt."""
        like = at_least_float(first.noise)
        return torch.stack([like.new_tensor(call.rng(i, f"SAIL {attempt}").standard_normal(tuple(like.shape[1:])))
                            for i in images.tolist()])
