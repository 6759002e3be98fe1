"""The same prompts and seed under every method, a line of pictures a method: what README shows of the demo.

    from rotescope.procedures.plots.grid import draw_grid
    draw_grid("runs/demo/samples", "runs/demo/checkpoint/manifest.parquet", "docs/grid.png")
"""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from rotescope.common.errors import InputError
from rotescope.common.wording import PROMPTS, name
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.inputs.samples import Samples, read_samples
from rotescope.procedures.plots.style import SMALL, TEXT, blank_figure, in_style, lines_of, save_figure

COLUMNS = {"duplicated": 6, "control": 3}  # prompts of each group
SIDE, GAP, LABELS = (
    0.84,
    0.3,
    1.05,
)  # inches: a picture, the space between two groups, the names of the methods
LINE, MARGIN = 0.135, 0.02  # inches: a line of text, the edge
TRAINING = "training image"


def draw_grid(
    samples: str | Path, train_data: str | Path, file: str | Path, columns: Mapping[str, int] = COLUMNS
) -> None:
    """Draw the pictures of a samples folder beside the training images of their prompts.

    Parameters
    ----------
    samples
        A folder that ``rotescope generate`` or ``rotescope demo`` has filled.
    train_data
        The training images, as every command takes them.
    file
        The PNG to write.
    columns
        How many prompts of which group, evenly from first to last.

    Raises
    ------
    InputError
        If the folder has no prompts of these groups.
    """
    found = read_samples(samples)
    training = {e.image_id: e.open for e in load_source(train_data)}
    groups = {group: _columns(found, training, group, n) for group, n in columns.items()}
    groups = {group: held for group, held in groups.items() if held}
    if not groups:
        raise InputError(
            f"{samples} has no prompts of the groups {', '.join(columns)}: name those that it has as columns"
        )
    save_figure(grid_figure(groups), file)


def _columns(
    samples: Samples, training: Mapping, group: str, n: int
) -> list[tuple[str, dict[str, Image.Image]]]:
    """-> (caption, {row: picture}) of n prompts of a group that have a training image, with the lowest
    seed."""
    records = [r for r in samples.records if r.group == group and r.image_id in training]
    seed = min((r.seed for r in records if r.seed is not None), default=None)
    records = [r for r in records if r.seed == seed]
    indices = sorted({r.prompt_index for r in records if r.prompt_index is not None})
    chosen = [indices[round(i * (len(indices) - 1) / max(n - 1, 1))] for i in range(min(n, len(indices)))]
    return [_column([r for r in records if r.prompt_index == index], samples, training) for index in chosen]


def _column(records: list, samples: Samples, training: Mapping) -> tuple[str, dict[str, Image.Image]]:
    first = records[0]
    return first.prompt, {TRAINING: training[first.image_id]()} | {
        name(r.method): samples.open(r) for r in records
    }


@in_style
def grid_figure(groups: Mapping[str, list[tuple[str, dict[str, Image.Image]]]]) -> Figure:
    """{group: columns (caption, {row: picture})} -> the figure: rows by name, captions over columns, a space
    between groups."""
    columns = [column for held in groups.values() for column in held]
    rows = list(dict.fromkeys(row for _, pictures in columns for row in pictures))
    lefts, starts = _places(groups)
    captions = [lines_of(caption, 12) for caption, _ in columns]
    headings = [lines_of(PROMPTS.get(group, group), 11 * len(held)) for group, held in groups.items()]
    head = LINE * (_most_lines(captions) + 1.3 * _most_lines(headings)) + 0.2
    width, height = lefts[-1] + SIDE + MARGIN, head + SIDE * len(rows) + MARGIN
    figure = blank_figure(width, height, layout=None)
    for down, row in enumerate(rows):
        bottom = height - head - SIDE * (down + 1)
        for left, (_, pictures) in zip(lefts, columns, strict=True):
            _show(
                figure,
                pictures.get(row),
                (left / width, bottom / height, 0.95 * SIDE / width, 0.95 * SIDE / height),
            )
        figure.text(
            (LABELS - 0.08) / width,
            (bottom + SIDE / 2) / height,
            lines_of(row, 14),
            ha="right",
            va="center",
            fontsize=SMALL,
            fontweight="bold" if row == TRAINING else "normal",
        )
    for left, caption in zip(lefts, captions, strict=True):
        figure.text(left / width, 1 - (head - 0.06) / height, caption, fontsize=SMALL, va="bottom")
    for left, heading in zip(starts.values(), headings, strict=True):
        figure.text(left / width, 1 - 0.06 / height, heading, fontsize=TEXT, fontweight="bold", va="top")
    return figure


def _most_lines(texts: list[str]) -> int:
    return max(text.count("\n") + 1 for text in texts)


def _places(groups: Mapping[str, list]) -> tuple[list[float], dict[str, float]]:
    """-> the left edge of each column, and of each group, in inches."""
    lefts, starts, at = [], {}, LABELS
    for group, held in groups.items():
        starts[group] = at
        lefts += [at + SIDE * i for i in range(len(held))]
        at = lefts[-1] + SIDE + GAP
    return lefts, starts


def _show(figure: Figure, picture: Image.Image | None, place: tuple[float, float, float, float]) -> None:
    if picture is not None:
        axes = figure.add_axes(place)
        axes.set_axis_off()
        axes.imshow(picture)
