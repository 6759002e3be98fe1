"""The centre square of a picture, which every descriptor sees; how large pictures are."""
import numpy as np

from rotescope.datasets.images.sampling import evenly_spread


def square(image, side, resample):
    """The centre square of an image, as training crops it, at side × side."""
    edge = min(image.size)
    left, top = (image.width - edge) / 2, (image.height - edge) / 2
    return image.convert("RGB").resize((side, side), resample, box=(left, top, left + edge, top + edge))


def typical_side(openers, at_most=32):
    """Functions that open a picture -> the median of the shorter sides of at most so many of them, evenly spread, in pixels."""
    return int(np.median([min(openers[i]().size) for i in evenly_spread(len(openers), at_most)]))
