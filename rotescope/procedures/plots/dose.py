"""Copy rate against dose, a panel a curve."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rotescope.procedures.plots.style import (
    BLUE,
    GREY,
    RED,
    SMALL,
    draw_band,
    in_style,
    lines_of,
    make_figure,
    save_figure,
)

COLUMNS = 4
PANEL = 1.95  # inches: width of a panel
A_LINE = 17  # characters of a caption to an inch


def draw_dose(curves: dict[str, dict], caption: str, chance: float, file: str | Path) -> None:
    """Write the picture of dose.json's ``curves``; `caption` stands under it."""
    save_figure(dose_figure(curves, caption, chance), file)


@in_style
def dose_figure(curves: dict[str, dict], caption: str, chance: float) -> Figure:
    """Share of copies against copies in an epoch, a panel a curve with its intervals and controls; the first
    curve stands in grey in the others' panels."""
    columns, rows = min(COLUMNS, len(curves)), -(-len(curves) // COLUMNS)
    width = max(PANEL * columns, 4.2)
    words = lines_of(caption, round(A_LINE * width))
    lines = words.count("\n") + (4 if columns < COLUMNS else 1)  # of the caption and the legend
    figure, panels = make_figure(
        width, 1.75 * rows + 1.0 + 0.15 * lines, rows, columns, sharex=True, sharey=True
    )
    first = next(iter(curves.values()))["points"]
    doses = [p["dose"] for p in first]
    for axes, (name, curve) in zip(panels.flat, curves.items(), strict=False):
        _panel(axes, name, curve["points"], first, doses, chance)
    for hidden in panels.flat[len(curves) :]:
        hidden.set_visible(False)
    for lowest in panels.flat[
        len(curves) - columns : len(curves)
    ]:  # of each column: below it there may be no panel
        lowest.tick_params(labelbottom=True)
    panels.flat[0].set_xscale("log", base=2)
    panels.flat[0].set_xticks(doses[::2], doses[::2])
    panels.flat[0].set_ylim(-0.03, 1.03)
    figure.supylabel("share of images that are copies", fontsize=9)
    figure.supxlabel(f"copies of the image in an epoch\n{words}", fontsize=SMALL)
    _legend(figure, panels.flat[0], panels.flat[min(1, len(curves) - 1)], len(curves), columns)
    return figure


def _panel(
    axes: Axes, name: str, points: list[dict], first: list[dict], doses: list[int], chance: float
) -> None:
    axes.axhline(chance, color=GREY, linestyle=":", linewidth=1, label="chance")
    if points is not first:
        axes.plot(
            doses,
            [p["duplicated"]["copy_rate"] for p in first],
            color=GREY,
            linewidth=1,
            label="the first panel's curve",
        )
    draw_band(axes, doses, [p["duplicated"] for p in points], RED, "duplicated images, 95% interval")
    axes.plot(
        doses, [p["control"]["copy_rate"] for p in points], "--", color=BLUE, linewidth=1.2, label="controls"
    )
    axes.set_title(
        lines_of(name.replace("_", "_\u200b").replace(":", ": "), 24).replace("\u200b", ""), fontsize=SMALL
    )


def _legend(figure: Figure, first: Axes, second: Axes, n: int, columns: int) -> None:
    """One for all panels, above them."""
    found = dict(zip(*reversed(first.get_legend_handles_labels()), strict=True))
    found |= dict(zip(*reversed(second.get_legend_handles_labels()), strict=True))
    figure.legend(
        found.values(), found.keys(), loc="outside upper left", ncols=len(found) if columns == COLUMNS else 1
    )
