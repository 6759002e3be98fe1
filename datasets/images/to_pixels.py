"""Image -> tensor: the only training-side resize, crop and normalisation."""
import numpy as np
import torch
from PIL import Image, ImageOps


def covering_size(size, shape):
    """-> the least width and height of an image of this size that cover a shape, in pixels."""
    (width, height), (inner_width, inner_height) = size, shape
    if width * inner_height >= height * inner_width:
        return width * inner_height // height, inner_height
    return inner_width, height * inner_width // width


def to_pixels(image, resolution, center_crop=True, flip=False, place=(0.5, 0.5)):
    """RGB PIL image -> float (3, height, width) in [-1, 1], as diffusers' training scripts have it.

    resolution: the side of a square, or a width and a height. The image is made as large as covers it (Lanczos); it is cut from
    the middle, or at `place`: x, y as shares of the margin.
    """
    width, height = shape = (resolution, resolution) if isinstance(resolution, int) else resolution
    size = covering_size(image.size, shape)
    if size != image.size:
        image = image.resize(size, Image.LANCZOS)
    x, y = ((side - inner) * share
            for side, inner, share in zip(size, shape, (0.5, 0.5) if center_crop else place, strict=True))
    image = image.crop((round(x), round(y), round(x) + width, round(y) + height))
    image = ImageOps.mirror(image) if flip else image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1  # (H, W, 3) -> (3, H, W)
