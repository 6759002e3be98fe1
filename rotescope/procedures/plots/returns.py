"""What came back when copied images were sought again, a line of pictures an image."""

from pathlib import Path

import matplotlib.axes
from matplotlib.figure import Figure
from PIL import Image

from rotescope.procedures.plots.style import RED, SMALL, in_style, lines_of, make_figure, save_figure

Cell = (
    tuple[Image.Image, str, bool] | None
)  # picture, what stands under it, whether it is a copy; None: not possible


def draw_returns(rows: list[tuple[str, list[Cell]]], titles: list[str], file: str | Path) -> None:
    """Write the picture; see returns_figure."""
    save_figure(returns_figure(rows, titles), file)


@in_style
def returns_figure(rows: list[tuple[str, list[Cell]]], titles: list[str]) -> Figure:
    """rows: (label, cells), a line of pictures each, its group at the left; titles over the columns. Framed:
    a copy."""
    words = ["\n".join(lines_of(line, 16) for line in title.splitlines()) for title in titles]
    height = 1.35 * len(rows) + 0.3 + 0.15 * max(w.count("\n") + 1 for w in words)
    figure, axes = make_figure(1.25 * len(titles) + 0.6, height, len(rows), len(titles))
    for line, (label, cells) in zip(axes, rows, strict=True):
        line[0].set_ylabel(label, fontsize=SMALL)
        for place, cell in zip(line, cells, strict=True):
            _show(place, cell)
    for place, title in zip(axes[0], words, strict=True):
        place.set_title(title, fontsize=SMALL)
    return figure


def _show(axes: matplotlib.axes.Axes, cell: Cell) -> None:
    image, text, framed = cell or (Image.new("RGB", (1, 1), "white"), "not possible", False)
    axes.set_xticks([], [])
    axes.set_yticks([], [])
    axes.imshow(image)
    axes.set_xlabel(f"{text} copy" if framed else text, fontsize=SMALL, color=RED if framed else "black")
    axes.spines[:].set(visible=True, color=RED if framed else "white", linewidth=2.5)
