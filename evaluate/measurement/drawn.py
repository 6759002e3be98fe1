"""Whether a picture shows something: neither one colour nor noise, judged beside real pictures."""
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rotescope.datasets.images.sampling import evenly_spread

LOOKED_AT = 200    # real pictures beside which others are judged, at most
SCALES = 4         # whole size, a half, a quarter, an eighth
SIDE = 32          # pixels below which a side is not halved again
FLAT = 4.0         # of 255: a picture whose pixels spread less than that, and than a quarter of real ones', is flat
LEVELS = 0.5       # of 255: less than that is rounding
NOISE = 0.75       # roughness from which on a picture is noise, if no real one is as rough


@dataclass(frozen=True)
class Texture:
    """Two numbers that tell flat pictures and noise from others."""
    spread: float                  # standard deviation of the pixels about the mean colour, of 255
    roughness: tuple[float, ...]   # at each scale


def texture_of(image: Image.Image) -> Texture:
    """An RGB picture -> its Texture.

    Roughness is half of von Neumann's ratio (1941): the mean square difference of neighbouring pixels over twice their
    variance, which is 1 − the correlation of neighbours: about 1 in white noise, and below 0.5 in most pictures. Noise that a
    decoder made of undenoised latents is rough at a coarser scale.
    """
    pixels = np.asarray(image, np.float32)
    found, spread = [], float(np.sqrt(_variance(pixels)))
    for _ in range(SCALES):
        found.append(_roughness(pixels))
        height, width = (side // 2 for side in pixels.shape[:2])
        if min(height, width) < SIDE:
            break
        pixels = pixels[:2 * height, :2 * width].reshape(height, 2, width, 2, -1).mean((1, 3))
    return Texture(spread, tuple(found))


def _variance(pixels):
    return float(((pixels - pixels.mean((0, 1))) ** 2).mean())


def _roughness(pixels):
    variance = _variance(pixels)
    steps = [np.square(np.diff(pixels, axis=axis)).mean() for axis in (0, 1) if pixels.shape[axis] > 1]
    return float(np.mean(steps)) / 2 / variance if variance and steps else 0.0


@dataclass(frozen=True)
class Real:
    """What real pictures look like."""
    spread: float                  # of the flattest twentieth, the most
    roughness: tuple[float, ...]   # the highest at each scale

    def empty(self, texture: Texture) -> str:
        """flat, noise, or nothing where a picture shows something."""
        if texture.spread <= max(LEVELS, min(FLAT, self.spread / 4)):
            return "flat"
        rough = (r > max(NOISE, highest) for r, highest in zip(texture.roughness, self._highest(texture), strict=True))
        return "noise" if any(rough) else ""

    def _highest(self, texture):
        """At scales that no real picture has, nothing is known."""
        return (*self.roughness, *[0.0] * SCALES)[:len(texture.roughness)]


def real_pictures(openers: Iterable[Callable[[], Image.Image]]) -> Real:
    """Training and held-out pictures, as what opens them -> Real, of a few of them."""
    openers = list(openers)
    textures = [texture_of(openers[i]()) for i in evenly_spread(len(openers), LOOKED_AT)]
    return Real(float(np.quantile([t.spread for t in textures], 0.05)), tuple(
        max(t.roughness[scale] for t in textures if len(t.roughness) > scale)
        for scale in range(max(len(t.roughness) for t in textures))))


def empty_pictures(openers, real) -> list[str]:
    """Pictures, as what opens them, beside Real ones -> what each is: flat, noise, or "" where it shows something."""
    return [real.empty(texture_of(opener())) for opener in openers]
