"""A mitigation that does nothing says so: which images it left as they were, why, and which models it hardly suits."""
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

from rotescope.mitigate.contract.families import denoiser_of
from rotescope.mitigate.contract.mitigation import Mitigation
from rotescope.mitigate.methods.transition import PLAIN, TransitionGuidance

DISTILLED_SCHEDULERS = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler")
DISTILLED_NAMES = ("turbo", "lightning", "schnell", "lcm", "hyper-sd", "distil", "dmd")  # in a model's name


class MitigationWarning(UserWarning):
    """A mitigation does less than its name says."""


@contextmanager
def without_mitigation_warnings():
    """For a command, which counts what its records say and tells it once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MitigationWarning)
        yield


def warn_of(lines: list[str]) -> None:
    """Each line as a MitigationWarning, from where the pipeline is called."""
    for line in lines:
        warnings.warn(line, MitigationWarning, stacklevel=5)


def is_plain(chain) -> bool:
    """Whether the mitigations are none at all."""
    return all(m == PLAIN for m in chain)


def effect_lines(what: str, chain: Sequence[Mitigation], active: list[bool], transitions: list[float | None],
                 timesteps: list[float]) -> list[str]:
    """What a user should know of images that are there.

    Parameters
    ----------
    what : str
        The mitigations' names.
    chain : sequence of Mitigation
    active : list of bool
        Of each image: whether anything was changed.
    transitions : list of float or None
        Of each image: the timestep at which guidance set in.
    timesteps : list of float
        Those that were sampled, from noise to picture.

    Returns
    -------
    list of str
        One line or none.
    """
    mitigation = next((m for m in chain if type(m) is TransitionGuidance), None)
    if what in ("", "none") or not active:  # whoever asks for plain guidance has it
        return []
    if not any(active):
        return [f"{what} changed nothing of {_images(len(active))}: {_why(mitigation, timesteps, transitions)}"]
    never = transitions.count(None)
    if mitigation and never == len(transitions) and timesteps:
        return [f"under {what} guidance never set in on {_images(never)}: the last timestep is {timesteps[-1]:g}, before every "
                "transition; take more steps, or an earlier transition (a higher timestep)"]
    return []


def _images(n):
    return f"{n:,} image{'' if n == 1 else 's'}"


def _why(mitigation, timesteps, transitions):
    """Why nothing was changed, and what to do."""
    if mitigation is None or not timesteps:
        return "they are what the pipeline makes without it"
    limit = mitigation.latest if mitigation.transition == "dynamic" else mitigation.transition
    past = all(t == timesteps[0] for t in transitions) if isinstance(limit, str) else timesteps[0] <= limit
    if past:
        return (f"the call begins at timestep {timesteps[0]:g}, and the transition at {limit} is past by then; give a higher "
                "strength, or a later transition (a lower timestep)")
    return "they are what the pipeline makes without it; see whether its settings suit this model"


def distilled_lines(pipe: Any) -> list[str]:
    """A line on a model that was distilled to be sampled without the guidance that mitigations change; none on others."""
    why = _distilled(pipe)
    return [f"this model is distilled ({why}): it is made to be sampled without guidance, and a mitigation works by guidance, so "
            "its pictures may be worse than plain ones"] if why else []


def is_distilled(pipe: Any) -> bool:
    """Whether a model was made to be sampled in few steps, without guidance."""
    return _distilled(pipe) is not None


def _distilled(pipe):
    scheduler, config = type(pipe.scheduler).__name__, denoiser_of(pipe).config
    name = str(getattr(pipe.config, "_name_or_path", "") or "").rstrip("/").lower().rpartition("/")[2]
    if scheduler in DISTILLED_SCHEDULERS:
        return f"its scheduler is {scheduler}"
    if getattr(config, "time_cond_proj_dim", None) is not None or getattr(config, "guidance_embeds", False):
        return "its denoiser takes the guidance scale as an input"
    return next((f"its name says {word}" for word in DISTILLED_NAMES if word in name), None)
