"""Edits under which a person still calls a picture a copy, or a copy of a part: what retrieval must see through.

Each takes an RGB picture and another picture, and returns an RGB picture of the first one's size. The other one is
what an edit needs besides: a ground to paste on, neighbours in a collage, a partner to blend with.
"""
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps


@dataclass(frozen=True)
class Edit:
    """One way to change a picture."""
    name: str                    # as tables show it
    make: Callable[[Image.Image, Image.Image], Image.Image]
    partial: bool = False        # less than half of the picture is left, or it fills less than a third of the result


# ----- pixels

def _encoded(image, quality):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def _halved(image, _):
    width, height = image.size
    return image.resize((max(width // 2, 1), max(height // 2, 1)), Image.LANCZOS).resize(image.size, Image.BICUBIC)


def _colour_shift(image, _):
    red, green, blue = image.split()
    return Image.merge("RGB", (red.point(lambda v: v * 0.75 + 40), green, blue.point(lambda v: v * 0.7)))


def _noisy(image, _):
    pixels = np.asarray(image, np.float64)
    noise = np.random.default_rng(0).normal(0, 18, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def _faded(image, _):
    return ImageEnhance.Contrast(image).enhance(0.5)


def _blurred(image, _):
    return image.filter(ImageFilter.GaussianBlur(min(image.size) / 90))


def _grey(image, _):
    return ImageOps.grayscale(image).convert("RGB")


def _blended(image, other):
    return Image.blend(image, _as_large(other, image), 0.4)


# ----- geometry

def _cropped(image, share, left=0.5, top=0.5):
    """A window of `share` of both sides, at its place among those possible, blown up to the picture's size."""
    width, height = image.size
    w, h = share * width, share * height
    x, y = left * (width - w), top * (height - h)
    return image.resize(image.size, Image.BICUBIC, (x, y, x + w, y + h))


def _ground(image):
    """The mean colour of a picture's border."""
    pixels = np.asarray(image, np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(int(v) for v in border.mean(0).round())


def _laid(image, share, canvas, left=0.5, top=0.5):
    """The picture at `share` of its size on a canvas."""
    size = tuple(max(round(share * side), 1) for side in image.size)
    canvas = canvas.copy()
    canvas.paste(image.resize(size, Image.LANCZOS),
                 (round(left * (canvas.width - size[0])), round(top * (canvas.height - size[1]))))
    return canvas


def _bordered(image, _):
    return _laid(image, 0.8, Image.new("RGB", image.size, (245, 245, 245)))


def _zoomed_out(image, _):
    return _laid(image, 0.7, Image.new("RGB", image.size, _ground(image)), 0.5, 0.7)


def _shifted(image, _):
    """By 15 % of the width and 10 % of the height; what comes in has the border's mean colour."""
    moved = Image.new("RGB", image.size, _ground(image))
    moved.paste(image, (round(0.15 * image.width), round(-0.1 * image.height)))
    return moved


def _turned(image, degrees):
    return image.rotate(degrees, Image.BICUBIC, fillcolor=_ground(image))


def _stretched(image, _):
    """A window of 4/5 of the width and the whole height, blown up: a quarter wider than before."""
    width, height = image.size
    return image.resize(image.size, Image.BICUBIC, (0.1 * width, 0, 0.9 * width, height))


def _written_over(image, _):
    image, (width, height) = image.copy(), image.size
    for line, (text, top) in enumerate((("NOT FOR SALE", 0.18), ("sample copy", 0.48), ("PREVIEW 2026", 0.76))):
        layer = Image.new("L", (len(text) * 6 + 4, 13), 0)
        ImageDraw.Draw(layer).text((2, 1), text, fill=255)
        mask = layer.resize((round(0.86 * width), max(round(0.16 * height), 1)), Image.BILINEAR)
        image.paste((255, 255, 255) if line % 2 else (10, 10, 10), (round(0.07 * width), round(top * height)), mask)
    return image


def _covered(image, other):
    """A quarter of the area lies under another picture."""
    return _laid(_as_large(other, image), 0.5, image, 0.9, 0.85)


def _collage(image, other):
    """A quarter of a collage: the other three are the other picture, as it is, mirrored and upside down."""
    canvas, other = Image.new("RGB", image.size), _as_large(other, image)
    for one, left, top in ((other, 0, 0), (image, 1, 0), (ImageOps.mirror(other), 0, 1), (ImageOps.flip(other), 1, 1)):
        canvas = _laid(one, 0.5, canvas, left, top)
    return canvas


def _pasted(image, other):
    return _laid(image, 0.5, _as_large(other, image), 0.7, 0.35)


def _as_large(other, image):
    return other.resize(image.size, Image.BICUBIC)


EDITS = (
    Edit("exact", lambda image, _: image.copy()),
    Edit("half size", _halved),
    Edit("JPEG 30", lambda image, _: _encoded(image, 30)),
    Edit("colour shift", _colour_shift),
    Edit("grey", _grey),
    Edit("faded", _faded),
    Edit("noise", _noisy),
    Edit("blur", _blurred),
    Edit("blended 60/40", _blended),
    Edit("flip", lambda image, _: ImageOps.mirror(image)),
    Edit("upside down", lambda image, _: image.transpose(Image.ROTATE_180)),
    Edit("turned by 90°", lambda image, _: image.transpose(Image.ROTATE_90).resize(image.size, Image.BICUBIC)),
    Edit("turned by 10°", lambda image, _: _turned(image, 10)),
    Edit("crop to 90 %", lambda image, _: _cropped(image, 0.9, 0.2, 0.7)),
    Edit("crop to 80 %", lambda image, _: _cropped(image, 0.8, 0.3, 0.6)),
    Edit("stretched by 1.25", _stretched),
    Edit("shifted by 15 %", _shifted),
    Edit("border of 10 %", _bordered),
    Edit("zoomed out to 70 %", _zoomed_out),
    Edit("text over it", _written_over),
    Edit("a quarter covered", _covered),
    Edit("flip + crop to 80 %", lambda image, _: ImageOps.mirror(_cropped(image, 0.8, 0.7, 0.4))),
    Edit("crop to 80 % + JPEG 30", lambda image, _: _encoded(_cropped(image, 0.8, 0.5, 0.3), 30)),
    Edit("shift + colour", lambda image, _: _colour_shift(_shifted(image, _), _)),
    Edit("flip + border", lambda image, _: ImageOps.mirror(_bordered(image, _))),
    Edit("text + JPEG 30", lambda image, _: _encoded(_written_over(image, _), 30)),
    Edit("crop to 50 %", lambda image, _: _cropped(image, 0.5, 0.4, 0.5), partial=True),
    Edit("a quarter of a collage", _collage, partial=True),
    Edit("pasted at half size", _pasted, partial=True),
)
