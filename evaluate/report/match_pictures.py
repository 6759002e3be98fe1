"""What a verified match looks like: its region framed, its points joined, one picture laid on the other.

Points and outlines are shares of a whole picture, in its own shape.
"""
import numpy as np
from PIL import Image, ImageDraw

FRAMED = 192       # pixels of the long side of a framed picture, at most
COMPARED = 420     # pixels of the long side of each of two pictures side by side
SHOWN_POINTS = 12
LINE = 2           # pixels from the middle of a frame's line to its edge
GAP = 12           # pixels between two pictures
EMPTY = (127, 127, 127)  # where the training image does not reach
# the colour-blind tell these apart, too (Okabe and Ito 2008)
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")


def sized(picture, longest):
    """The picture at `longest` pixels at most: large ones reduced, small ones enlarged by a whole number."""
    if max(picture.size) > longest:
        picture = picture.copy()
        picture.thumbnail((longest, longest), Image.LANCZOS)
        return picture
    factor = longest // max(picture.size)
    return picture.resize((picture.width * factor, picture.height * factor), Image.NEAREST)


def framed(picture, outline):
    """The picture, sized, with a frame along the outline; None stays."""
    if picture is None:
        return None
    picture = sized(picture.convert("RGB"), FRAMED)
    if len(outline) > 2:
        _draw_frame(picture, outline)
    return picture


def _draw_frame(picture, outline):
    """Black on white, inside the picture, so that it shows on any ground."""
    draw = ImageDraw.Draw(picture)
    corners = [_pixel(point, picture.size, LINE) for point in outline]
    for colour, half in (("white", LINE), ("black", LINE // 2)):
        draw.line([*corners, corners[0]], fill=colour, width=2 * half + 1)
        for x, y in corners:
            draw.rectangle((x - half, y - half, x + half, y + half), fill=colour)


def _pixel(point, size, margin=0):
    """A share of each side -> the pixel, at least `margin` from the border where the picture has room."""
    return tuple(round(min(max(share * side, min(margin, side / 2)), max(side - 1 - margin, side / 2)))
                 for share, side in zip(point, size, strict=True))


def joined(generated, training, points):
    """Two pictures side by side, with lines between up to 12 matched points -> RGBA picture."""
    pictures = [sized(one.convert("RGB"), COMPARED) for one in (generated, training)]
    canvas = _beside(*pictures)
    draw, right = ImageDraw.Draw(canvas), pictures[0].width + GAP
    for i, (here, there) in enumerate(_spread(points)):
        start, (x, y) = (_pixel(point, one.size) for point, one in zip((here, there), pictures, strict=True))
        ends, colour = (start, (right + x, y)), COLOURS[i % len(COLOURS)]
        for ink, width in (("white", 5), (colour, 2)):
            draw.line(ends, fill=ink, width=width)
        for x, y in ends:
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour, outline="white", width=2)
    return canvas


def _spread(points):
    """At most SHOWN_POINTS of the matched points, evenly from first to last."""
    at = np.linspace(0, len(points) - 1, min(len(points), SHOWN_POINTS)).round().astype(int) if points else ()
    return [points[i] for i in at]


def laid_on(generated, training, transform):
    """The generated picture beside the training image, laid on it by the transform -> RGBA picture; None where
    the transform cannot be turned round."""
    warped = warp(training, transform, generated.size)
    return warped and _beside(*(sized(one.convert("RGB"), COMPARED) for one in (generated, warped)))


def warp(training, transform, size):
    """The training image as the transform lays it on a picture of this size, grey where it does not reach
    -> RGB picture, or None where the transform cannot be turned round.

    transform: (a, b, c, d, e, f); training (x, y) lies at generated (a x + b y + c, d x + e y + f), in shares.
    """
    a, b, c, d, e, f = transform
    forward = np.array([[a, b, c], [d, e, f], [0, 0, 1]], np.float64)
    if abs(np.linalg.det(forward)) < 1e-9:
        return None
    scaled = np.diag([*training.size, 1]) @ np.linalg.inv(forward) @ np.diag([1 / size[0], 1 / size[1], 1])
    return training.convert("RGB").transform(size, Image.AFFINE, tuple(scaled[:2].ravel()), Image.BICUBIC,
                                             fillcolor=EMPTY)


def _beside(one, other):
    """Both on one canvas, through which the page shows -> RGBA picture."""
    canvas = Image.new("RGBA", (one.width + GAP + other.width, max(one.height, other.height)), (0, 0, 0, 0))
    canvas.paste(one, (0, 0))
    canvas.paste(other, (one.width + GAP, 0))
    return canvas
