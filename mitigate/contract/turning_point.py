"""Where on its way from noise to picture a sampler turns: a timestep, a level of noise, or a share of the steps.

A published timestep belongs to the schedule of its authors' model; elsewhere it is another level of noise. What carries
over is the

    noise share    σ / (α + σ)    of x_t = α x₀ + σ ε: 1 for noise alone, 0 for the picture

Under flow matching, where α = 1 − σ, it is σ itself.
"""
from math import ceil
from typing import Any

from rotescope.common.errors import InputError

NOISE, STEPS = "noise:", "steps:"
POINTS = ("transition", "latest", "earliest", "warm_up")   # the settings that take one
Point = int | float | str


def is_point(text: str) -> bool:
    """Whether a text is noise:X or steps:X, X from 0 to 1."""
    try:
        return text.startswith((NOISE, STEPS)) and 0 <= float(text.partition(":")[2]) <= 1
    except ValueError:
        return False


def check_points(lowest: float = 0, words: tuple[str, ...] = (), **points: Point) -> None:
    """InputError for one of these settings that is no point: a timestep from `lowest` to 1000, noise:X, steps:X, or a word."""
    for name, value in points.items():
        if isinstance(value, str):
            if value not in words and not is_point(value):
                known = "".join(f"{word}, " for word in words)
                raise InputError(f"{name}={value!r}: give a timestep from 0 to 1000, {known}a level of noise such as noise:0.7, "
                                 "or a share of the steps such as steps:0.35")
        elif not lowest <= value <= 1000:
            raise InputError(f"{name}={value}: give a timestep from {lowest} to 1000, noise:X or steps:X with X from 0 to 1")


def noise_share(scheduler: Any, timestep: float) -> float:
    """A diffusers scheduler and a timestep -> σ / (α + σ)."""
    from rotescope.models.prediction import rates_at  # torch, which a list of names does without
    alpha, sigma = rates_at(scheduler, timestep)
    return sigma / (alpha + sigma)


def timestep_of(point: Point, scheduler: Any) -> float:
    """A point -> the timestep from which on, with timesteps falling, a sampler is past it; −1 if it never is.

    scheduler: a diffusers scheduler whose timesteps are set.
    """
    if not isinstance(point, str):
        return point
    kind, x = point.partition(":")[0] + ":", float(point.partition(":")[2])
    timesteps = list(dict.fromkeys(float(t) for t in scheduler.timesteps))
    if kind == STEPS:
        return (timesteps + [-1.0])[ceil(round(x * len(timesteps), 6))]
    return next((t for t in timesteps if noise_share(scheduler, t) <= x), -1.0)
