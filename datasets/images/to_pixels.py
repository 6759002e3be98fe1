"""Image -> tensor: the only training-side resize, crop and normalisation."""
import numpy as np
import torch
from PIL import Image, ImageOps


def to_pixels(image, resolution, center_crop=True, flip=False, place=(0.5, 0.5)):
    """RGB PIL image -> float (3, resolution, resolution) in [-1, 1], as diffusers' training scripts have it.

    The short side becomes `resolution` (Lanczos); a square is cut from the middle, or at `place`: x, y as shares of the margin.
    """
    size = tuple(side * resolution // min(image.size) for side in image.size)
    if size != image.size:
        image = image.resize(size, Image.LANCZOS)
    x, y = ((side - resolution) * share for side, share in zip(image.size, (0.5, 0.5) if center_crop else place, strict=True))
    image = image.crop((round(x), round(y), round(x) + resolution, round(y) + resolution))
    image = ImageOps.mirror(image) if flip else image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1  # (H, W, 3) -> (3, H, W)
