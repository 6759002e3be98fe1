"""What all pictures share: colours, sizes of text, intervals, and names that keep clear of one another."""

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from rotescope.common.whole_files import whole_file

RED, BLUE, GREEN, PURPLE, ORANGE, SKY = "#c44601", "#0072b2", "#00795c", "#9c4a7f", "#b97d00", "#56b4e9"
INK, GREY, PALE = (
    "#1d1c1a",
    "#6b6b6b",
    "#c9c9c9",
)  # the colours are those of Okabe and Ito, dark enough on white
SMALL, TEXT, TITLE = 8, 9, 10  # points; no text is smaller than SMALL
DPI = 130
LOOK = {
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "legend.fontsize": SMALL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.edgecolor": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}

in_style = rc_context(LOOK)  # a decorator: what a function draws looks like the other pictures


@in_style
def blank_figure(width: float, height: float, layout: Any = "constrained") -> Figure:
    """A figure of so many inches; it belongs to no window, and leaves pyplot as it is."""
    figure = Figure((width, height), layout=layout)
    FigureCanvasAgg(figure)  # so that the sizes of texts are known
    return figure


@in_style
def make_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **settings: Any
) -> tuple[Figure, np.ndarray]:
    """A blank figure and its axes, (rows, columns)."""
    figure = blank_figure(width, height)
    return figure, figure.subplots(rows, columns, squeeze=False, **settings)


@in_style
def save_figure(figure: Figure, file: str | Path) -> None:
    """Write a PNG, whole or not at all."""
    with whole_file(file) as draft:
        figure.savefig(draft, format="png", dpi=DPI)


def draw_band(
    axes: Axes,
    x: Sequence[float],
    cells: Sequence[dict],
    colour: str,
    label: str | None = None,
    name: str = "copy_rate",
    **style: Any,
) -> None:
    """A curve of figures over x with their 95% intervals: bars, and a band that joins them."""
    low, high = zip(*(c[f"{name}_interval"] for c in cells), strict=True)
    axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.vlines(x, low, high, color=colour, alpha=0.45, linewidth=1)
    axes.plot(
        x,
        [c[name] for c in cells],
        **{"marker": "o", "markersize": 4, "color": colour, "label": label, **style},
    )


def lines_of(text: str, characters: int) -> str:
    """Text broken into lines of at most so many characters, between words."""
    return textwrap.fill(text, characters, break_long_words=False, break_on_hyphens=False)


# ----- names beside points


@in_style
def place_names(
    axes: Axes, names: Iterable[tuple[str, tuple[float, float], str]], clear: Sequence[np.ndarray] = ()
) -> None:
    """Write each name beside its point, where it covers no point, no other name and no line.

    Parameters
    ----------
    axes
        With its limits set, and everything else that takes room in the figure: the places are found in
        pixels.
    names
        Name, point in data coordinates, and colour; the first choose first.
    clear
        Lines to keep clear of, each an array (n, 2) in data coordinates. Points are lines of one.
    """
    names, canvas = list(names), cast(FigureCanvasAgg, axes.figure.canvas)
    canvas.draw()  # the layout is known from here on, and stays
    canvas.figure.set_layout_engine("none")
    lines, pixel = (*clear, *(np.array([point]) for _, point, _ in names)), axes.figure.dpi / 72
    taken = [box for line in lines for box in _boxes(axes, line, pixel)]
    for name, point, colour in names:
        taken.append(_place(axes, name, point, colour, taken, canvas.get_renderer()))


def _boxes(axes: Axes, line: np.ndarray, pixel: float) -> Iterator[Bbox]:
    """Small boxes along a line; `pixel`: pixels of a point of text."""
    points = axes.transData.transform(np.asarray(line, np.float64))
    for a, b in zip(points, np.concatenate([points[1:], points[-1:]]), strict=True):
        for x, y in np.linspace(a, b, max(2, math.ceil(np.hypot(*(b - a)) / (3 * pixel)))):
            yield Bbox.from_bounds(x - 3 * pixel, y - 3 * pixel, 6 * pixel, 6 * pixel)


def _place(
    axes: Axes, name: str, point: tuple[float, float], colour: str, taken: list[Bbox], renderer: Any
) -> Bbox:
    """The first free place, near ones first -> the box that the name takes."""
    text = axes.annotate(
        name, point, (0, 0), textcoords="offset points", fontsize=SMALL, color=colour, annotation_clip=False
    )
    for offset, across, upright in _places():
        text.set(position=offset, ha=across, va=upright)
        box = text.get_window_extent(renderer)
        if _inside(box, axes.bbox) and not any(box.overlaps(other) for other in taken):
            break
    if math.hypot(*text.get_position()) > 12:
        axes.annotate(
            "",
            point,
            text.get_position(),
            textcoords="offset points",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )
    return box


def _places() -> Iterator[tuple[tuple[float, float], str, str]]:
    """(offset in points, horizontal, vertical alignment), from near to far."""
    for distance in (6, *range(14, 150, 9)):
        for angle in (0, 180, 90, 270, 45, 135, 225, 315, 22, 158, 202, 338):
            x, y = distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))
            yield (
                (x, y),
                "center" if abs(x) < 1 else "left" if x > 0 else "right",
                "center" if abs(y) < 1 else "bottom" if y > 0 else "top",
            )


def _inside(box: Bbox, outer: Bbox, slack: float = 1.0) -> bool:
    return (
        box.x0 >= outer.x0 - slack
        and box.y0 >= outer.y0 - slack
        and box.x1 <= outer.x1 + slack
        and box.y1 <= outer.y1 + slack
    )
