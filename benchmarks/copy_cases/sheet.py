"""One picture that shows every edit, and what was told of it."""
import textwrap
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from rotescope.datasets.images.edits import Edit
from rotescope.evaluate.report.match_pictures import framed
from rotescope.evaluate.report.report_types import Pair

COLUMNS, CELL, TEXT, GAP = 8, 150, 34, 8
GREEN, AMBER, RED = (20, 120, 60), (150, 95, 0), (180, 30, 30)


def sheet(original: Image.Image, edited: Sequence[tuple[Edit, Image.Image, Pair]], right: Mapping[str, bool]) -> Image.Image:
    """The original, then each edited picture with the matched region framed, what it is and what was told.

    edited: (Edit, picture, its Pair); right: name of an edit -> whether the original was named.
    """
    rows = -(-(len(edited) + 1) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * (CELL + GAP) + GAP, rows * (CELL + TEXT + GAP) + GAP), "white")
    _cell(canvas, 0, original, "training picture", "", "black")
    for i, (edit, picture, pair) in enumerate(edited, 1):
        outline = pair.match.generated_outline if pair.match and right[edit.name] else ()
        told = "missed" if not right[edit.name] else "copy" if pair.is_copy else "copy of a part"
        colour = {"missed": RED, "copy": GREEN}.get(told, AMBER)
        _cell(canvas, i, framed(picture, outline), edit.name, told, colour)
    return canvas


def chance_sheet(pairs: Sequence[tuple[Image.Image, Image.Image, float]]) -> Image.Image:
    """(Held-out picture, the training picture that it comes closest to, evidence above the threshold), side by side."""
    canvas = Image.new("RGB", (len(pairs) * (CELL + GAP) + GAP, 2 * (CELL + TEXT + GAP) + GAP), "white")
    for i, (image, training, above) in enumerate(pairs):
        x = GAP + i * (CELL + GAP)
        for row, (picture, text) in enumerate(((image, f"held out: {above:+.1f}"), (training, "training picture"))):
            y = GAP + row * (CELL + TEXT + GAP)
            canvas.paste(picture.resize((CELL, CELL), Image.LANCZOS), (x, y))
            ImageDraw.Draw(canvas).text((x, y + CELL + 3), text, "black", ImageFont.load_default(12))
    return canvas


def _cell(canvas, i, picture, name, told, colour):
    x, y = GAP + i % COLUMNS * (CELL + GAP), GAP + i // COLUMNS * (CELL + TEXT + GAP)
    canvas.paste(picture.resize((CELL, CELL), Image.LANCZOS), (x, y))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    draw.text((x, y + CELL + 3), textwrap.shorten(name, 24), "black", font)
    draw.text((x, y + CELL + 18), told, colour, font)
