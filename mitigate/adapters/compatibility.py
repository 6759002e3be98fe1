"""Which pipelines may be mitigated. On one that orders its branches or counts its time otherwise, a mitigation would do nothing,
or harm, and not say so: it is refused."""
from rotescope.common.errors import InputError
from rotescope.common.models import counts_timesteps
from rotescope.mitigate.contract.families import denoiser_of, family


def check_served(pipe):
    """-> its family; InputError for a pipeline that is of none, or that counts its time otherwise."""
    if any(base.__name__ == "ModularPipeline" for base in type(pipe).__mro__):
        raise InputError(f"{type(pipe).__name__} is modular, and takes a mitigation as its guider: "
                         "pipe.update_components(guider=guider_for(pipe, NAME)), from rotescope.mitigate.adapters.guider")
    denoiser_of(pipe)
    kind = family(pipe)
    if kind == "other":
        raise InputError(f"{type(pipe).__name__} is not served: take a pipeline of Stable Diffusion 1, 2, XL or 3, PixArt or "
                         "FLUX, text to image, image to image, inpainting or ControlNet")
    check_scheduler(pipe.scheduler)
    return kind


def check_scheduler(scheduler):
    """InputError for one whose timesteps do not run from 1000 to 0: every transition would be past at once."""
    if not counts_timesteps(scheduler):
        kind = scheduler.config.get("timestep_type")
        name = type(scheduler).__name__ + (f"(timestep_type={kind!r})" if kind else "")
        raise InputError(f"{name} does not count its timesteps from 1000 to 0, as mitigations do: give the pipeline another "
                         "scheduler")
