"""Which pipelines may be mitigated. On one that orders its branches or counts its time otherwise, a mitigation would do nothing,
or harm, and not say so: it is refused."""
from rotescope.errors import InputError
from rotescope.mitigate.mitigation import denoiser_of, family


def check_served(pipe):
    """-> its family; InputError for a pipeline that is of none, or that counts its time otherwise."""
    denoiser_of(pipe)
    kind = family(pipe)
    if kind == "other":
        raise InputError(f"{type(pipe).__name__} is not served: take a pipeline of Stable Diffusion 1, 2, XL or 3, PixArt or "
                         "FLUX, text to image, image to image, inpainting or ControlNet")
    return kind
