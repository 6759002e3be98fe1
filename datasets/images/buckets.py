"""Aspect buckets: the shapes that pictures are trained and sampled in where they are not cropped to squares.

A bucket is a width and a height of about the same area as a square, both multiples of 64 (kohya-ss/sd-scripts,
--enable_bucket). A picture belongs to the one whose ratio of width to height is nearest to its own.
"""
GRAIN = 64  # of a bucket's sides, in pixels; of a model for smaller pictures, an eighth of its side


def bucket_grain(side: int) -> int:
    """What the sides of buckets about as large as a square are multiples of, in pixels."""
    return GRAIN if side >= 8 * GRAIN else max(8, side // 8)


def bucket_shapes(side: int, grain: int, least: int | None = None, most: int | None = None) -> list[tuple[int, int]]:
    """The buckets about as large as a square.

    Parameters
    ----------
    side : int
        Of the square, in pixels.
    grain : int
        What their sides are multiples of.
    least, most : int, optional
        The shortest and the longest side that they may have; half and twice the square's unless given.

    Returns
    -------
    list of (int, int)
        Width and height, sorted: of each width the largest height within the square's area, and each the other way round.
    """
    least = max(grain, (side // 2 if least is None else least) // grain * grain)
    most = (2 * side if most is None else most) // grain * grain
    longest = [(width, min(most, side * side // width // grain * grain)) for width in range(least, most + 1, grain)]
    square = side // grain * grain
    shapes = {(square, square), *longest, *((height, width) for width, height in longest)}
    return sorted(shape for shape in shapes if min(shape) >= least)


def nearest_bucket(size: tuple[int, int], shapes: list[tuple[int, int]]) -> tuple[int, int]:
    """The bucket of a picture of this width and height: of the nearest ratio, and of two such the larger."""
    return min(shapes, key=lambda shape: (abs(shape[0] / shape[1] - size[0] / size[1]), -shape[0] * shape[1]))
