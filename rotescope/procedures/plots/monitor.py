"""What a fine-tune learns by rote while it trains, a curve a group of captions."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rotescope.procedures.plots.style import (
    BLUE,
    GREY,
    INK,
    RED,
    SMALL,
    draw_band,
    in_style,
    lines_of,
    make_figure,
    save_figure,
)

GROUPS = {
    "duplicated": (RED, "o", "-"),
    "control": (BLUE, "s", "-."),
    "heldout": (GREY, "^", "--"),
}  # also without colour


def draw_monitor(lines: list[dict], file: str | Path, wanted: float | None = None) -> None:
    """Write the picture of monitor.jsonl's lines; wanted: the copy rate that stops the training."""
    save_figure(monitor_figure(lines, wanted), file)


@in_style
def monitor_figure(lines: list[dict], wanted: float | None = None) -> Figure:
    """Copy rate above, prediction gap below, over the optimizer's steps."""
    figure, axes = make_figure(7, 6.6, 2, 1, sharex=True)
    (rates,), (gaps,) = axes
    _curves(rates, lines, "copy_rate")
    _curves(gaps, lines, "prediction_gap")
    if wanted:
        rates.axhline(wanted, color=INK, linewidth=0.9, linestyle=":", label=f"stop at {wanted:g}")
    rates.set(ylabel="share of images that are copies", ylim=(-0.03, 1.03))
    gaps.set(
        ylabel="prediction gap ‖eps_cond − eps_uncond‖₂\nat the first step, mean", xlabel="optimizer step"
    )
    gaps.set(xlim=(0, 1.02 * lines[-1]["step"]), ylim=(0, None))
    rates.legend(title="bars and bands: 95%, Clopper-Pearson", title_fontsize=SMALL, alignment="left")
    gaps.legend(title="bars and bands: 95%, bootstrap of the mean", title_fontsize=SMALL, alignment="left")
    last = lines[-1]
    about = (
        f"Guidance {last['guidance_scale']:g}, {last['num_inference_steps']} denoising steps. A copy's similarity is "
        f"{last['copy_threshold']:.3f} or more: {last['threshold_rule']}"
    )
    figure.suptitle(lines_of(about, 110), fontsize=SMALL, x=0.02, ha="left")
    return figure


def _curves(axes: Axes, lines: list[dict], name: str) -> None:
    for group in lines[-1]["groups"]:
        colour, marker, style = GROUPS[group]
        cells = [line["groups"][group] for line in lines]
        draw_band(
            axes,
            [line["step"] for line in lines],
            cells,
            colour,
            f"{group.replace('heldout', 'held-out')}, n = {cells[-1]['n']}",
            name,
            marker=marker,
            linestyle=style,
        )
