"""A search for text embeddings that bring an image back: DoRI.

Kowalczuk et al., Finding DoRI: Discovery of Retained Images in Diffusion Models, ICML 2026, arXiv 2507.16880:
    min_e E ‖ε_θ(x_t, t, e) − ε‖²,   x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε,   over timesteps t and noise ε; x₀ the image's latents
by Adam from the embedding of a text. It looks at the model alone, not through a mitigation: a search through one may find more.
With steps enough it draws pictures that the model never saw, too: what it finds means something only beside the same search,
at the same budget, on those.
"""
import math
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import DDPMScheduler

from rotescope.common.errors import InputError, RunError
from rotescope.mitigate.contract.families import family
from rotescope.mitigate.denoiser.first_step import at_least_float, descend, gradients
from rotescope.mitigate.denoiser.probe import image_latents
from rotescope.mitigate.prompts.prompt import EmbeddedPrompt
from rotescope.mitigate.sampling.jobs import noise_seed
from rotescope.models.memory import check_differentiable
from rotescope.models.prediction import TARGETS, diffusion_rates, eps_slope, noisy_latents, prediction_kind

PREDICTED = ("epsilon", "v_prediction")   # what a model may predict in which embeddings are searched for
STARTS = ("caption", "empty")   # the text whose embedding a search starts from


@dataclass(frozen=True)
class Budget:
    """Of one search. The defaults are the paper's for Stable Diffusion 1.4, where ordinary images take over 500 steps."""
    steps: int = 50
    learning_rate: float = 0.1
    draws: int = 8              # timesteps and noises a step

    def __post_init__(self):
        if self.steps < 1 or self.draws < 1 or not self.learning_rate > 0:
            raise InputError(f"steps={self.steps}, draws={self.draws}, learning_rate={self.learning_rate}: a search needs 1 or "
                             "more steps and draws, and a learning rate above 0")

    @property
    def rows(self):
        """Denoiser rows of a search; each is differentiated too, which costs about two more."""
        return self.steps * self.draws


@dataclass(frozen=True, eq=False)
class Found(EmbeddedPrompt):
    """Where a search ended; `text` is the caption of its target."""
    start: str = ""
    seed: int = 0
    loss: tuple[float, float] = (math.nan, math.nan)  # mean over the first and over the last fifth of the steps


def check_searchable(pipe):
    """InputError for a pipeline in which embeddings cannot be searched for."""
    kind = prediction_kind(pipe.scheduler)
    if family(pipe) != "sd" or pipe.unet.config.in_channels != pipe.vae.config.latent_channels or kind not in PREDICTED:
        raise InputError(f"embeddings are searched for in a StableDiffusionPipeline that predicts epsilon or v, not in a "
                         f"{type(pipe).__name__} that predicts {kind}")
    check_differentiable({"unet": pipe.unet}, "the search for embeddings")


def search(pipe, latents, start, seeds, budget):
    """latents (n, C, h, w) of the targets, start (n, tokens, width), seeds (n,) -> embeddings (n, tokens, width) in float32 or
    more, and the loss of every step (steps, n).

    Each image draws its own timesteps and noise, by its seed: it finds the same whatever is searched beside it. The loss is the
    mean over the elements, in ε whatever the model predicts. RunError where it becomes infinite.
    """
    check_searchable(pipe)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    kind = prediction_kind(scheduler)
    generators, losses = [torch.Generator().manual_seed(s) for s in seeds], []
    with gradients():
        start, latents = (at_least_float(x.detach().clone()) for x in (start, latents))
        all_rates = diffusion_rates(scheduler.alphas_cumprod.to(latents))                   # α and σ, each (T,)

        def loss(text, images):
            timesteps, noise = _drawn([generators[i] for i in images.tolist()], budget.draws, latents, len(scheduler))
            x0, text = (x.repeat_interleave(budget.draws, 0) for x in (latents[images], text))
            rates = [rate[timesteps].view(-1, 1, 1, 1) for rate in all_rates]
            x = noisy_latents(x0, noise, *rates).to(pipe.unet.dtype)
            output = pipe.unet(x, timesteps, encoder_hidden_states=text.to(x.dtype)).sample
            error = at_least_float(output) - TARGETS[kind](x0, noise, *rates)
            to_eps = torch.as_tensor(eps_slope(kind, *rates)).flatten()
            each = (to_eps ** 2 * error.square().flatten(1).mean(1)).view(len(images), budget.draws).mean(1)
            losses.append(each.detach())
            return each

        end, _ = descend(start, loss, -torch.inf, partial(torch.optim.Adam, lr=budget.learning_rate), budget.steps)
    if not all(x.isfinite().all() for x in (end, *losses)):
        raise RunError("the search for an embedding diverged: take a lower learning rate")
    return end, torch.stack(losses)


def _drawn(generators, draws, like, timesteps):
    """-> timesteps (k · draws,) and noise (k · draws, C, h, w): each generator's one after the other."""
    pairs = [(torch.randint(timesteps, (draws,), generator=g),
              torch.randn((draws, *like.shape[1:]), generator=g, dtype=like.dtype)) for g in generators]
    return tuple(torch.cat(each).to(like.device) for each in zip(*pairs, strict=True))


def find_embeddings(pipe, targets, budget, *, starts=STARTS, seeds=(0,), batch_size=64, on_found=None):
    """Search for each Target from each start with each seed -> a Found for each, target by target.

    A search takes budget.draws rows of a batch; on_found() is called after each.
    """
    jobs = [(target, start, seed) for target in targets for start in starts for seed in seeds]
    together, found = max(1, batch_size // budget.draws), []
    for batch in (jobs[i:i + together] for i in range(0, len(jobs), together)):
        ends, losses = _searched(pipe, batch, budget)
        for (target, start, seed), end, loss in zip(batch, ends, losses, strict=True):
            found.append(Found(**vars(target.prompt), embedding=end.to(pipe.unet.dtype), start=start, seed=seed, loss=loss))
            if on_found:
                on_found()
    return found


def _searched(pipe, jobs, budget):
    """-> the jobs' embeddings, and for each the mean loss over the first and over the last fifth of the steps."""
    texts = [target.prompt.text if start == "caption" else "" for target, start, _ in jobs]
    streams = [noise_seed(f"{start} {target.example.image_id}", seed) for target, start, seed in jobs]
    ends, losses = search(pipe, image_latents(pipe, [target.example.open() for target, *_ in jobs]), text_embeddings(pipe, texts),
                          streams, budget)
    fifth = max(1, budget.steps // 5)
    return ends, list(zip(losses[:fifth].mean(0).tolist(), losses[-fifth:].mean(0).tolist(), strict=True))


@torch.no_grad()
def text_embeddings(pipe, texts):
    """n texts -> (n, tokens, width), as the pipeline encodes them."""
    return pipe.encode_prompt(list(texts), pipe._execution_device, 1, False)[0]
