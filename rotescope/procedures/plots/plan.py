"""How many leaks a sampling plan finds for the images that it spends."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rotescope.procedures.plots.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    in_style,
    make_figure,
    save_figure,
)

COLOURS, STYLES = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY), ("-", "--", "-.")


def draw_plan(
    orders: np.ndarray, curves: dict[str, np.ndarray], leaks: int, prompts: int, file: str | Path
) -> None:
    """Write the picture; see plan_figure."""
    save_figure(plan_figure(orders, curves, leaks, prompts), file)


@in_style
def plan_figure(orders: np.ndarray, curves: dict[str, np.ndarray], leaks: int, prompts: int) -> Figure:
    """Leaks found against images spent.

    Parameters
    ----------
    orders
        (orders, budgets): leaks that uniform sampling finds with 1, 2, … images, in random orders.
    curves
        The same (budgets,) of each plan, by its name.
    leaks
        How many there are to be found.
    prompts
        How many prompts there are.
    """
    figure, ((axes,),) = make_figure(7.5, 5.2)
    budgets = np.arange(1, orders.shape[1] + 1)
    axes.fill_between(
        budgets,
        *np.quantile(orders, [0.05, 0.95], axis=0),
        color=GREY,
        alpha=0.22,
        linewidth=0,
        label="uniform: 90% of the random orders",
    )
    axes.plot(budgets, orders.mean(0), color=INK, linewidth=2.2, label="uniform: mean")
    for i, (name, curve) in enumerate(curves.items()):
        axes.plot(
            budgets,
            curve,
            linewidth=1.6,
            label=name,
            color=COLOURS[i % len(COLOURS)],
            linestyle=STYLES[i // len(COLOURS) % len(STYLES)],
            drawstyle="steps-post",
        )
    axes.axhline(leaks, color=INK, linewidth=0.9, linestyle=":")
    axes.annotate(f"all {leaks} known leaks", (1, leaks), (4, 4), textcoords="offset points", fontsize=8)
    axes.set(
        xlabel=f"images spent, of {len(budgets):,} ({prompts} prompts), the price of the scores included",
        ylabel="leaks found",
        xlim=(1, len(budgets)),
        ylim=(-0.02 * leaks, 1.1 * leaks),
        xscale="log",
    )
    powers = [10**i for i in range(len(str(len(budgets))))]
    axes.set_xticks(powers, [f"{v:,}" for v in powers])
    figure.legend(loc="outside lower left", ncols=2)
    return figure
