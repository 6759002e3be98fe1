"""Whether the adapter does on one model what it promises on all: each promise tried on the user's own weights."""
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rotescope.mitigate.adapters.pipeline_hook import mitigated
from rotescope.mitigate.contract.families import FAMILIES, family, guidance_arguments, two_branch_scale, why_one_branch
from rotescope.mitigate.sampling.picture_size import fixed_size

PROMPTS = ("a photograph of a lighthouse at night", "a bowl of oranges")
ROUNDING = 3 / 255     # of a pixel in [0, 1]: what another batch size may change
FLAT = 0.005           # standard deviation below which a picture shows nothing


@dataclass(frozen=True)
class Check:
    """One promise, and whether it holds. None: it could not be tried."""
    name: str
    held: bool | None
    said: str


def selfcheck(pipe: Any, num_inference_steps: int = 4, guidance_scale: float | None = None,
              resolution: Any = None) -> Iterator[Check]:
    """Sample a pipeline of any family in six short calls -> a Check for each promise, as soon as it is tried.

    Parameters
    ----------
    pipe : diffusers pipeline
    num_inference_steps : int
        Of each call; 4 or more.
    guidance_scale : float, optional
        In diffusers' convention, above 1; the family's own unless given, or 4 where that is off.
    resolution : int, str or pair of int, optional
        Side of the pictures in pixels, or width and height; the model's own unless given.
    """
    pipe.set_progress_bar_config(disable=True)
    scale, kind = two_branch_scale(pipe, guidance_scale), family(pipe)

    def draw(prompts=PROMPTS[:1], seeds=(0,)):
        return _draw(pipe, prompts, seeds, num_inference_steps, scale, resolution)
    stock = draw()
    yield _drawn(stock)
    yield _same("the same seed gives the same image", draw(), stock, 0.0)
    with mitigated(pipe, "none") as plain:
        found = draw()
    yield _same("plain guidance under the adapter is the stock pipeline", found, stock, 0.0)
    if why := why_one_branch(kind, pipe.config.get("is_distilled")):
        yield Check("mitigations work", None, f"{type(pipe).__name__} takes none: {why}")
        return
    yield Check("both branches are seen in every step", bool(np.isfinite(plain.prediction_gaps).all() and plain.timesteps),
                f"{plain.denoiser_rows[0]} rows in {num_inference_steps} steps; timesteps "
                f"{', '.join(f'{t:g}' for t in plain.timesteps)}")
    yield from _mitigation(pipe, kind, draw, stock, plain.timesteps)
    yield _same("afterwards the pipeline is as it was", draw(), stock, 0.0)


def _draw(pipe, prompts, seeds, steps, scale, resolution):
    """Pictures (n, h, w, 3) in [0, 1]."""
    width, height = fixed_size(resolution)
    size = {} if width is None else {"height": height, "width": width}
    return np.asarray(pipe(prompt=list(prompts), **guidance_arguments(pipe, len(prompts), scale), **size,
                           num_inference_steps=steps, output_type="np",
                           generator=[torch.Generator().manual_seed(s) for s in seeds]).images)


def _drawn(pictures):
    finite, spread = bool(np.isfinite(pictures).all()), float(np.nan_to_num(pictures).std())
    return Check("pictures are drawn", finite and spread > FLAT,
                 f"pixels of {'numbers' if finite else 'NaN'}, standard deviation {spread:.3f}"
                 + ("" if finite else "; take --dtype fp32, or a VAE that is made for half precision"))


def _same(name, pictures, others, limit):
    apart = float(np.abs(pictures - others).max())
    return Check(name, apart <= limit, "to the bit" if apart == 0 else f"pixels differ by up to {apart:.2g} of 1")


def _mitigation(pipe, kind, draw: Callable, stock, timesteps):
    """Opposite guidance that turns halfway: it acts, it turns, and other images beside one change nothing of it."""
    turn = round((timesteps[1] + timesteps[2]) / 2)
    with mitigated(pipe, f"og-stp:transition={turn}") as run:
        alone = draw()
    apart = float(np.abs(alone - stock).max())
    yield Check("opposite guidance changes the image", apart > ROUNDING, f"pixels differ by up to {apart:.2g} of 1")
    yield Check("guidance sets in where it should", run.transition_timesteps == [timesteps[2]],
                f"at {run.transition_timesteps[0]}, of {turn} at the most")
    if FAMILIES[kind].together != "images":
        yield Check("an image does not depend on its neighbours", None,
                    f"{type(pipe).__name__} is given one {FAMILIES[kind].together} at a time, for it mixes them")
        return
    with mitigated(pipe, f"og-stp:transition={turn}"):
        both = draw(PROMPTS, (0, 1))
    yield _same("an image does not depend on its neighbours", both[:1], alone, ROUNDING)
