"""Scenes: one or two sprites anywhere, at any size, angle and mirroring, on a coloured ground.

The caption says what, never where, so that a caption has endless pictures: a fine-tune can tie it to one of them, and a
mitigation has somewhere else to go.
"""
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
SPRITES = HERE / "sprites"
SIDE = 64             # scene side, in pixels
PAIR_SHARE = 0.15     # share of scenes with two sprites
OBJECTS = {           # word in the caption -> Unicode CLDR short name
    "cat": "cat_face", "panda": "panda", "frog": "frog", "pig": "pig_face", "penguin": "penguin",
    "butterfly": "butterfly", "crab": "crab", "turtle": "turtle", "tulip": "tulip", "cactus": "cactus",
    "mushroom": "mushroom", "banana": "banana", "strawberry": "strawberry", "carrot": "carrot", "pizza": "pizza",
    "doughnut": "doughnut", "rocket": "rocket", "bus": "bus", "sailboat": "sailboat", "umbrella": "umbrella",
    "guitar": "guitar", "soccer ball": "soccer_ball", "gift": "wrapped_gift", "crown": "crown",
}
GROUNDS = {
    "white": (244, 244, 244), "black": (28, 28, 32), "red": (196, 44, 44), "blue": (56, 92, 208),
    "green": (64, 156, 84), "yellow": (242, 208, 68), "purple": (132, 76, 180), "pink": (244, 160, 196),
}


@dataclass(frozen=True)
class Scene:
    image: Image.Image       # RGB, 64 × 64
    objects: tuple[str, ...]
    ground: str

    @property
    def caption(self):
        return caption(self.objects, self.ground)


def caption(objects, ground):
    """('cat', 'bus'), 'blue' -> 'a cat and a bus on a blue background'."""
    return " and ".join(f"{'an' if o[0] in 'aeiou' else 'a'} {o}" for o in objects) + f" on a {ground} background"


def all_captions():
    """Every caption that a scene can have, singles first; a pair has its objects in the order of OBJECTS."""
    groups = [*((o,) for o in OBJECTS), *combinations(OBJECTS, 2)]
    return [caption(objects, ground) for objects in groups for ground in GROUNDS]


@cache
def sprite(name):
    return Image.open(SPRITES / f"{name.replace(' ', '_')}.png").convert("RGBA")


def _placed(name, rng, low, high):
    """A sprite mirrored, turned and scaled -> RGBA image of `low` to `high` pixels a side."""
    image = sprite(name)
    if rng.random() < 0.5:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
    image = image.rotate(rng.uniform(-35, 35), Image.BICUBIC, expand=True)
    side = int(rng.integers(low, high + 1))
    return image.resize((side, side), Image.LANCZOS)


def compose(objects, ground, rng):
    """Draw one scene; everything that the caption leaves open comes from `rng`."""
    jitter = rng.integers(-10, 11, 3)
    canvas = Image.new("RGBA", (SIDE, SIDE), (*(int(v) for v in np.clip(np.array(GROUNDS[ground]) + jitter, 0, 255)), 255))
    if len(objects) == 1:
        placed = _placed(objects[0], rng, 26, 44)
        canvas.alpha_composite(placed, tuple(int(v) for v in rng.integers(0, SIDE - placed.width + 1, 2)))
    else:  # two, side by side or one above the other, never overlapping
        order, upright = rng.permutation(2), rng.random() < 0.5
        for half, which in enumerate(order):
            placed = _placed(objects[which], rng, 24, 31)
            along = int(half * SIDE // 2 + rng.integers(0, SIDE // 2 - placed.width + 1))
            across = int(rng.integers(0, SIDE - placed.width + 1))
            canvas.alpha_composite(placed, (across, along) if upright else (along, across))
    return Scene(canvas.convert("RGB"), tuple(objects), ground)


def draw(seed, index, pair_share=PAIR_SHARE):
    """Scene `index` of stream `seed`: the same whatever was drawn before it."""
    rng = np.random.default_rng((seed, index))
    n = 2 if rng.random() < pair_share else 1
    names = list(OBJECTS)
    objects = [names[i] for i in sorted(rng.choice(len(names), n, replace=False))]
    return compose(objects, list(GROUNDS)[rng.integers(len(GROUNDS))], rng)


def scenes(n, seed, pair_share=PAIR_SHARE):
    return (draw(seed, i, pair_share) for i in range(n))
