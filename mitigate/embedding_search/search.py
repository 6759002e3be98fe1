"""A search for text embeddings that bring an image back: DoRI.

Kowalczuk et al., Finding DoRI: Discovery of Retained Images in Diffusion Models, ICML 2026, arXiv 2507.16880:
    min_e E ‖ε_θ(x_t, t, e) − ε‖²,   x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε,   over timesteps t and noise ε; x₀ the image's latents
by Adam from the embedding of a text; under flow matching down the loss of that, ‖u_θ(x_t, t, e) − (ε − x₀)‖² at σ = t / T.
Pooled text and masks, where a family has them, stay those of the text that a search starts from. It looks at the model alone, not
through a mitigation: a search through one may find more. With steps enough it draws pictures that the model never saw, too: what
it finds means something only beside the same search, at the same budget, on those.
"""
import math
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial

import torch

from rotescope.common.errors import InputError, RunError
from rotescope.mitigate.contract.families import denoiser_of, family
from rotescope.mitigate.contract.text_inputs import EMBEDDING, TEXT_INPUTS
from rotescope.mitigate.denoiser.branch_loss import BranchLoss, own_side, why_no_loss
from rotescope.mitigate.denoiser.first_step import at_least_float, descend, gradients
from rotescope.mitigate.denoiser.probe import image_latents
from rotescope.mitigate.prompts.prompt import EmbeddedPrompt
from rotescope.mitigate.sampling.embedded_prompts import positive_inputs, rows_repeated, text_inputs
from rotescope.mitigate.sampling.encoded_texts import EncodedTexts
from rotescope.mitigate.sampling.jobs import noise_seed
from rotescope.models.memory import check_differentiable
from rotescope.models.prediction import prediction_kind

PREDICTED = ("epsilon", "v_prediction", "flow")   # what a model may predict in which embeddings are searched for
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
    beside: dict[str, torch.Tensor] = field(default_factory=dict)   # what the pipeline is given with it: {argument: a row}

    def tensors(self, name):
        """-> {name: the embedding, name.argument: a row}, for a file."""
        return {name: self.embedding} | {f"{name}.{argument}": row for argument, row in self.beside.items()}


def check_searchable(pipe):
    """InputError for a pipeline in which embeddings cannot be searched for."""
    if why := why_no_loss(pipe):
        raise InputError(f"embeddings cannot be searched for: {why}")
    if (kind := prediction_kind(pipe.scheduler)) not in PREDICTED:
        raise InputError(f"embeddings cannot be searched for: {type(pipe).__name__} predicts {kind}, not ε, v or a flow")
    check_differentiable({"unet" if hasattr(pipe, "unet") else "transformer": denoiser_of(pipe)}, "the search for embeddings")


def search(pipe, latents, start, seeds, budget, beside=None, side=None):
    """latents (n, C, h, w) of the targets, start (n, tokens, width), seeds (n,) -> embeddings (n, tokens, width) in float32 or
    more, and the loss of every step (steps, n).

    beside: what else the pipeline is given of the texts, {argument: n rows}; side: of its pictures in pixels, its own unless
    given. Each image draws its own timesteps and noise, by its seed: it finds the same whatever is searched beside it. The loss
    is the mean over the elements, as BranchLoss has it. RunError where it becomes infinite.
    """
    check_searchable(pipe)
    generators, losses = [torch.Generator().manual_seed(s) for s in seeds], []
    with gradients():
        texts = {name: rows_repeated(value, budget.draws) for name, value in {**(beside or {}), EMBEDDING: start}.items()}
        start, latents = (at_least_float(x.detach().clone()) for x in (start, latents))
        if TEXT_INPUTS[family(pipe)].listed:
            texts[EMBEDDING] = list(texts[EMBEDDING])
        branch_loss = BranchLoss(pipe, texts, side)

        def loss(text, images):
            timesteps, noise = _drawn([generators[i] for i in images.tolist()], budget.draws, latents, branch_loss)
            x0, text = (rows_repeated(x, budget.draws) for x in (latents[images], text))
            each = branch_loss(x0, noise, timesteps, text).view(len(images), budget.draws).mean(1)
            losses.append(each.detach())
            return each

        end, _ = descend(start, loss, -torch.inf, partial(torch.optim.Adam, lr=budget.learning_rate), budget.steps)
    if not all(x.isfinite().all() for x in (end, *losses)):
        raise RunError("the search for an embedding diverged: take a lower learning rate")
    return end, torch.stack(losses)


def _drawn(generators, draws, like, loss):
    """-> timesteps (k · draws,) and noise (k · draws, C, h, w): each generator's one after the other."""
    pairs = [(torch.randint(loss.steps, (draws,), generator=g) + loss.first_timestep,
              torch.randn((draws, *like.shape[1:]), generator=g, dtype=like.dtype)) for g in generators]
    return tuple(torch.cat(each).to(like.device) for each in zip(*pairs, strict=True))


def find_embeddings(pipe, targets, budget, *, starts=STARTS, seeds=(0,), batch_size=64, side=None, on_found=None):
    """Search for each Target from each start with each seed -> a Found for each, target by target.

    side: of the pictures in pixels, the pipeline's own unless given. A search takes budget.draws rows of a batch; on_found() is
    called after each.
    """
    check_searchable(pipe)
    jobs = [(target, start, seed) for target in targets for start in starts for seed in seeds]
    kept, together, found = EncodedTexts(), max(1, batch_size // budget.draws), {}
    encoded = {text: text_inputs(pipe, [text], kept, side=side) for text in dict.fromkeys(map(_words, jobs))}
    side = next((own_side(pipe, call) for _, call in encoded.values()), side)   # where a pipeline has tables of sides
    for alike in _of_one_length(jobs, encoded):
        for batch in (alike[i:i + together] for i in range(0, len(alike), together)):
            ends, losses = _searched(pipe, [jobs[i] for i in batch], encoded, budget, side)
            for i, end, loss in zip(batch, ends, losses, strict=True):
                (target, start, seed), words = jobs[i], _words(jobs[i])
                arguments = encoded[words][0]
                found[i] = Found(**vars(target.prompt), embedding=end.to(arguments[EMBEDDING][0]), words=words, start=start,
                                 seed=seed, loss=loss, beside=_beside(arguments))
                if on_found:
                    on_found()
    return [found[i] for i in range(len(jobs))]


def _words(job):
    """The text that a job starts from."""
    target, start, _ = job
    return target.prompt.text if start == "caption" else ""


def _beside(arguments):
    """What the pipeline is given of one text beside its embedding -> {argument: its only row}."""
    return {name: value[0] for name, value in positive_inputs(arguments).items() if name != EMBEDDING}


def _of_one_length(jobs, encoded):
    """-> lists of the jobs' numbers: texts of several lengths do not stack, where a family does not fill them up."""
    alike = defaultdict(list)
    for i, job in enumerate(jobs):
        alike[encoded[_words(job)][0][EMBEDDING][0].shape].append(i)
    return alike.values()


def _searched(pipe, jobs, encoded, budget, side):
    """-> the jobs' embeddings, and for each the mean loss over the first and over the last fifth of the steps."""
    texts = [encoded[_words(job)][0] for job in jobs]
    streams = [noise_seed(f"{start} {target.example.image_id}", seed) for target, start, seed in jobs]
    beside = {name: torch.stack([_beside(each)[name] for each in texts]) for name in _beside(texts[0])}
    latents = image_latents(pipe, [target.example.open() for target, *_ in jobs], side)
    ends, losses = search(pipe, latents, torch.stack([each[EMBEDDING][0] for each in texts]), streams, budget, beside, side)
    fifth = max(1, budget.steps // 5)
    return ends, list(zip(losses[:fifth].mean(0).tolist(), losses[-fifth:].mean(0).tolist(), strict=True))
