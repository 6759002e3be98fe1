"""The seven figures of the paper, each with its claim and whether it held."""

from pathlib import Path

import numpy as np
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
    place_names,
    save_figure,
)

A_LINE = 17  # characters of a title to an inch
SWEPT = {"delayed": (BLUE, "o"), "opposite": (RED, "s")}  # colour and marker


def draw_all(curves, drawn, found, folder, examples, threshold):
    """Write figure1.png … figure7.png into `folder`; each title says whether its claim held."""
    for number, figure in all_figures(curves, drawn, found, examples, threshold):
        save_figure(figure, Path(folder) / f"figure{number}.png")


@in_style
def all_figures(curves, drawn, found, examples, threshold):
    """-> [(number, Figure)] of the claims."""
    found_figures = []
    figures = {
        1: (_gaps, curves),
        2: (_fall_by_seed, drawn),
        3: (_switched_on, curves, drawn, examples),
        4: (_convergence, curves, examples),
        5: (_basin, drawn),
        6: (_moved, drawn),
        7: (_tradeoff, drawn, threshold),
    }
    for claim in found:
        if claim.number == 7 and claim.held is None:  # there is no alignment to draw
            continue
        draw, *data = figures[claim.number]
        figure, held = draw(*data), outcome_in_words(claim)
        words = round(A_LINE * figure.get_figwidth())
        figure.suptitle(
            f"{lines_of(claim.says, words)}\n{lines_of(f'{held}: {claim.evidence}', words)}",
            fontsize=SMALL,
            x=0.02,
            ha="left",
        )
        if claim.number == 7:
            _name_transitions(figure.axes[0], drawn)  # last, when the room is known
        found_figures.append((claim.number, figure))
    return found_figures


def outcome_in_words(claim):
    """Whether a claim held, as a title says it."""
    return "cannot be told" if claim.held is None else "held" if claim.held else "did not hold"


def _axes(x, y) -> tuple[Figure, Axes]:
    figure, ((axes,),) = make_figure(7, 4.4)
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


def _gaps(curves):
    figure, axes = _axes("timestep (noise to image)", "prediction gap ‖eps_cond − eps_uncond‖₂")
    for group, colour in (("control", BLUE), ("duplicated", RED)):
        gaps, timesteps = curves.gaps("unguided", group)
        axes.plot(timesteps, gaps.T, color=colour, alpha=0.08, linewidth=0.7)
        axes.plot(
            timesteps,
            np.median(gaps, 0),
            color=colour,
            linewidth=2,
            label=f"{group}, {len(gaps)} images, median in bold",
        )
    axes.invert_xaxis()
    axes.legend()
    return figure


def _fall_by_seed(drawn):
    n = len(drawn["likeness"][0])
    timesteps = drawn["unguided"].reshape(n, -1)
    figure, axes = _axes("duplicated caption", "timestep of the steepest fall")
    for seed in range(timesteps.shape[1]):
        axes.plot(range(n), timesteps[:, seed], "o", color=RED, alpha=0.6, markersize=4)
    axes.vlines(range(n), timesteps.min(1), timesteps.max(1), color=GREY, linewidth=0.7)
    return figure


def _most_copied(curves, examples):
    """Duplicated prompts, at most four, from different parts of the list, with their training images."""
    firsts = {r.prompt_index: r for r in curves.of("none")}
    chosen = list(firsts.values())[:: max(1, len(firsts) // 4)][:4]
    return [(r, examples[r.image_id].open()) for r in chosen]


def _grid(rows, titles):
    """rows: lists of PIL images -> a figure; titles over the columns."""
    figure, axes = make_figure(0.85 * len(titles), 0.85 * len(rows) + 0.9, len(rows), len(titles))
    for line, images in zip(axes, rows, strict=True):
        for place, image in zip(line, images, strict=True):
            place.imshow(image)
            place.set_axis_off()
    for place, title in zip(axes[0], titles, strict=True):
        place.set_title(title, fontsize=SMALL)
    return figure


def _switched_on(curves, drawn, examples):
    taus = [p["transition_timestep"] for p in drawn["delayed"]]
    rows = []
    for record, training in _most_copied(curves, examples):
        same = [
            next(r for r in curves.of(m) if (r.prompt_index, r.seed) == (record.prompt_index, record.seed))
            for m in ("none", *(f"delayed-{t}" for t in taus))
        ]
        rows.append([training, *(curves.samples.open(r) for r in same)])
    return _grid(rows, ["training", "plain", *(f"τ {t}" for t in taus)])


def _convergence(curves, examples):
    seeds, rows = min(4, len({r.seed for r in curves.of("none")})), []
    for record, training in _most_copied(curves, examples):
        pictures = [
            [curves.samples.open(r) for r in curves.of(m) if r.prompt_index == record.prompt_index][:seeds]
            for m in ("none", "unguided")
        ]
        rows.append([training, *pictures[0], *pictures[1]])
    return _grid(rows, ["training", *["guided"] * seeds, *["unguided"] * seeds])


def _basin(drawn):
    figure, axes = _axes("guidance from this timestep on", "share of images that are copies")
    for name, label in (
        ("delayed", "delayed (no guidance before)"),
        ("opposite", "opposite guidance before"),
    ):
        colour, marker = SWEPT[name]
        draw_band(
            axes,
            [p["transition_timestep"] for p in drawn[name]],
            drawn[name],
            colour,
            f"{label}, n = {drawn[name][0]['n']} each, 95% interval",
            marker=marker,
        )
    axes.axhline(drawn["plain"]["copy_rate"], color=INK, linestyle=":", label="guidance from the start")
    axes.set_ylim(-0.03, 1.03)
    axes.invert_xaxis()
    figure.legend(loc="outside lower left", ncols=1)
    return figure


def _moved(drawn):
    figure, axes = _axes("timestep of the steepest fall", "images")
    bins = np.linspace(0, 1000, 26)
    for values, colour, label in (
        (drawn["unguided"], BLUE, "unguided"),
        (drawn["against"], RED, "opposite guidance"),
    ):
        axes.hist(values, bins.tolist(), color=colour, alpha=0.5, label=f"{label}, n = {len(values)}")
    axes.invert_xaxis()
    axes.legend()
    return figure


def _tradeoff(drawn, threshold):
    figure, axes = _axes(
        "95th percentile of similarity to the nearest training image", "alignment with the caption"
    )
    for name, (colour, marker) in SWEPT.items():
        axes.plot(
            *_curve(drawn, name).T,
            marker=marker,
            color=colour,
            label=f"{name}, by its transition timestep",
            markersize=4,
        )
    axes.plot(drawn["plain"]["sim95"], drawn["plain"]["alignment"], "D", color=INK, label="plain guidance")
    axes.axvline(threshold, color=GREY, linestyle=":", label=f"copy threshold {threshold:.2f}")
    axes.margins(0.08)
    figure.legend(loc="outside lower left", ncols=2)
    return figure


def _curve(drawn, name):
    """-> (n, 2) similarity and alignment."""
    return np.array([(p["sim95"], p["alignment"]) for p in drawn[name]])


def _name_transitions(axes, drawn):
    names = [
        (f"{p['transition_timestep']:g}", (p["sim95"], p["alignment"]), colour)
        for name, (colour, _) in SWEPT.items()
        for p in drawn[name]
    ]
    place_names(axes, names, [_curve(drawn, name) for name in SWEPT])
