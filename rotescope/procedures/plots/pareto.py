"""What comparing mitigations shows: copies against alignment, and every method by name with its interval."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rotescope.procedures.plots.style import (
    GREY,
    INK,
    PALE,
    RED,
    TEXT,
    blank_figure,
    in_style,
    place_names,
    save_figure,
)

PLAIN = "none"
STYLES = {"plain": ("s", INK), "front": ("o", RED), "other": ("o", GREY)}  # marker and colour
WORDS = {
    "plain": "plain guidance (none)",
    "front": "the front: no other has fewer copies at no less alignment",
    "other": "other mitigations",
}


def draw_pareto(rows: dict[str, dict], file: str | Path) -> None:
    """Write the picture of compare.json's ``methods``: {name: {groups, cost, front}}."""
    save_figure(pareto_figure(rows), file)


@in_style
def pareto_figure(rows: dict[str, dict]) -> Figure:
    """Above, alignment against copy rate, the front joined and named. Below, every method on a line of its
    own: its copy rate with its 95% interval, and its alignment. Where alignment is not known, the copy rates
    alone."""
    known = all(row["groups"]["duplicated"]["alignment"] is not None for row in rows.values())
    ordered = sorted(rows, key=lambda name: (_point(rows[name])[0], -(_point(rows[name])[1] or 0)))
    heights = 4.4, 0.2 * len(rows) + 0.7
    title = (
        f"Captions of duplicated images, {rows[ordered[0]]['groups']['duplicated']['n']} images a method; "
        "lines: 95% intervals of the copy rate"
    )
    if not known:
        figure = blank_figure(7.5, heights[1] + 0.4)
        _list_rates(figure.subplots(), rows, ordered)
        figure.suptitle(title, fontsize=TEXT, x=0.02, ha="left")
        return figure
    figure = blank_figure(7.5, sum(heights))
    above, below = figure.subfigures(2, 1, height_ratios=heights)  # type: ignore[misc]
    rates, alignments = below.subplots(1, 2, width_ratios=(2.2, 1))
    _list_rates(rates, rows, ordered)
    _list_alignments(alignments, rows, ordered)
    above.suptitle(title, fontsize=TEXT, x=0.02, ha="left")
    _scatter(above.subplots(), rows)
    return figure


def _kind(name: str, row: dict) -> str:
    return "plain" if name == PLAIN else "front" if row["front"] else "other"


def _point(row: dict) -> tuple[float, float]:
    return row["groups"]["duplicated"]["copy_rate"], row["groups"]["duplicated"]["alignment"]


def _whisker(row: dict) -> np.ndarray:
    return np.array([(x, row["groups"]["duplicated"]["alignment"]) for x in row["groups"]["duplicated"]["copy_rate_interval"]])


def _scatter(axes: Axes, rows: dict[str, dict]) -> None:
    axes.set(
        xlabel="share of images that are copies", ylabel="alignment with the caption", xlim=(-0.03, 1.03)
    )
    front = np.array(sorted(_point(row) for row in rows.values() if row["front"]))
    axes.plot(*front.T, color=RED, linewidth=0.8)
    for row in rows.values():
        axes.plot(*_whisker(row).T, color=PALE, linewidth=1, zorder=0)
    for kind, (marker, colour) in STYLES.items():
        points = [_point(row) for name, row in rows.items() if _kind(name, row) == kind]
        if points:  # hollow: one on top of another still shows
            axes.plot(
                *zip(*points, strict=True),
                marker,
                color=colour,
                markersize=6,
                markerfacecolor="none",
                markeredgewidth=1.4,
                label=WORDS[kind],
            )
    axes.margins(y=0.12)  # room for names
    axes.figure.legend(loc="outside lower left", ncols=2)
    named = [
        (name, _point(row), STYLES[_kind(name, row)][1])
        for name, row in rows.items()
        if _kind(name, row) != "other"
    ]
    place_names(axes, named, [front, *(_whisker(row) for row in rows.values())])


def _list_rates(axes: Axes, rows: dict[str, dict], ordered: list[str]) -> None:
    for y, name in enumerate(ordered):
        marker, colour = STYLES[_kind(name, rows[name])]
        axes.plot(rows[name]["groups"]["duplicated"]["copy_rate_interval"], [y, y], color=colour, linewidth=1.2)
        axes.plot(rows[name]["groups"]["duplicated"]["copy_rate"], y, marker, color=colour, markersize=4.5)
    axes.set_yticks(range(len(ordered)), ordered)
    for label, name in zip(axes.get_yticklabels(), ordered, strict=True):
        label.set_color(STYLES[_kind(name, rows[name])][1])
    axes.set(xlabel="share of images that are copies", xlim=(-0.03, 1.03), ylim=(len(ordered) - 0.4, -0.6))
    axes.tick_params(axis="y", length=0)


def _list_alignments(axes: Axes, rows: dict[str, dict], ordered: list[str]) -> None:
    for y, name in enumerate(ordered):
        marker, colour = STYLES[_kind(name, rows[name])]
        axes.plot(rows[name]["groups"]["duplicated"]["alignment"], y, marker, color=colour, markersize=4.5)
    axes.set_yticks(range(len(ordered)), [])
    axes.set(xlabel="alignment", ylim=(len(ordered) - 0.4, -0.6))
    axes.grid(axis="y", color=PALE, linewidth=0.5)
    axes.tick_params(axis="y", length=0)
