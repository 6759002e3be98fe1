"""Pictures full of corners and curves, each its own, to find local features in."""
import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def drawing(*seed, size=(256, 256), n=90):
    """Ellipses, boxes and lines at random, a little blurred."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(int(v) for v in rng.integers(60, 200, 3)))
    draw = ImageDraw.Draw(image)
    for i in range(n):
        x, y = rng.uniform(-0.1, 1, 2) * size
        w, h = rng.uniform(6, 40, 2)
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        if i % 3 == 2:
            draw.line((x, y, x + w, y + h), colour, 3)
        else:
            (draw.ellipse if i % 3 else draw.rectangle)((x, y, x + w, y + h), colour)
    return image.filter(ImageFilter.GaussianBlur(0.8))


def keys(n):
    """n different SHA-256 in hexadecimal."""
    return [f"{i:064x}" for i in range(n)]


def openers(pictures):
    return [lambda p=p: p for p in pictures]
