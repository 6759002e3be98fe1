"""The registry: a user's name for a descriptor -> the descriptor, and what `auto` takes."""
from collections.abc import Callable
from functools import partial

from rotescope.common.errors import InputError
from rotescope.evaluate.descriptors.descriptor import pdq, pixels
from rotescope.evaluate.descriptors.semantic import clip, dinov2
from rotescope.evaluate.descriptors.sscd import PREPROCESSING, WEIGHTS, cached, has_onnx, sscd, sscd_onnx

SMALL = 128  # pixels; below, SSCD cannot tell copies from scenes that merely look alike
FROM_PACKAGES: dict[str, Callable] = {"pixels": pixels, "pdq": pdq, "sscd": sscd_onnx}
FROM_FILES: dict[str, Callable] = {  # called with what follows the colon, and the SHA-256 sums that the user trusts
    **{f"sscd-{weights}-{size}": partial(sscd, weights, size) for weights in WEIGHTS for size in PREPROCESSING},
    "dinov2": dinov2, "clip": clip}
REGISTRY = FROM_PACKAGES | FROM_FILES


def choose(side):
    """What `auto` takes for images whose short side is `side` pixels, and why."""
    if side <= SMALL:
        return "pixels", f"images of {side} px: at most {SMALL} px, SSCD puts different pictures too close to each other"
    if cached().exists():
        return "sscd-disc-mixup-288", "its weights are here, and it is the best on photographs"
    if has_onnx():
        return "sscd", "installed, and the best on photographs"
    return "pixels", "SSCD, in the extra sscd, is not installed; near-identical copies are found, edited ones may be missed"


def get_descriptor(name="auto", side=SMALL, trust_sha256=()):
    """NAME or NAME:FILE, or `auto` for images of `side` pixels -> Descriptor.

    trust_sha256: sums of TorchScript files that may be executed though they are not on the published list.
    InputError for another name, a missing package or a file that is not to be trusted.
    """
    name, _, file = (choose(side)[0] if name == "auto" else name).partition(":")
    if name not in REGISTRY:
        raise InputError(f"no descriptor {name!r}: take auto or one of {', '.join(REGISTRY)}")
    if name in FROM_PACKAGES:
        return FROM_PACKAGES[name]()
    return FROM_FILES[name](file, trust_sha256)
