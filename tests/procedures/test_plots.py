"""Every picture: nothing is clipped, no text is small, names cover nothing, and what is drawn is what was
told."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from instruments import noise, samples_folder, training_set
from matplotlib.legend import Legend
from matplotlib.text import Text
from PIL import Image

from rotescope.common.errors import InputError
from rotescope.evaluate.statistics.replication import clopper_pearson
from rotescope.procedures.plots.dose import dose_figure
from rotescope.procedures.plots.figures import all_figures
from rotescope.procedures.plots.grid import draw_grid, grid_figure
from rotescope.procedures.plots.monitor import draw_monitor, monitor_figure
from rotescope.procedures.plots.pareto import pareto_figure
from rotescope.procedures.plots.plan import plan_figure
from rotescope.procedures.plots.returns import returns_figure
from rotescope.procedures.plots.style import SMALL, lines_of, make_figure, place_names, save_figure

RULE = "0.99 quantile of the similarity of each of 3,000 training images to its nearest other one, by pixels-32-centred-fp32"
LONG = "caption-perturbation:several=3,seed=17"


def texts_of(figure):
    """Every text that is drawn and says something, with its box in pixels: tick labels only where there is a
    tick."""
    figure.canvas.draw()
    renderer, hidden = figure.canvas.get_renderer(), set()
    for axes in figure.findobj(lambda a: hasattr(a, "xaxis")):
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            unseen = [
                t
                for t in ticks
                if not low <= t.get_loc() <= high or not axes.axison or not axes.get_visible()
            ]
            hidden |= {label for t in unseen for label in (t.label1, t.label2)}
        if not axes.get_visible():
            hidden |= set(axes.findobj(Text))
    shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]
    return [(t, t.get_window_extent(renderer)) for t in shown]


def check(figure):
    """No text is clipped or small; no ink touches the edge of the picture."""
    for text, box in texts_of(figure):
        inside = (
            box.x0 >= figure.bbox.x0 - 1
            and box.y0 >= figure.bbox.y0 - 1
            and box.x1 <= figure.bbox.x1 + 1
            and box.y1 <= figure.bbox.y1 + 1
        )
        assert inside, f"{text.get_text()!r} is clipped"
        assert text.get_fontsize() >= SMALL, text.get_text()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    pixels = np.asarray(Image.open(stream).convert("L"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() > 250


def cell(copies, n=24, **others):
    return {"n": n, "copy_rate": copies / n, "copy_rate_interval": clopper_pearson(copies, n), **others}


def legend_of(figure):
    return [t.get_text() for legend in figure.findobj(Legend) for t in legend.get_texts()]


@pytest.fixture
def rows():
    """Twelve mitigations, of which two lie on the same point and many in a corner."""
    rng = np.random.default_rng(0)
    names = ["none", "stp", "og-stp", LONG, *(f"method-{i}" for i in range(8))]
    crowd = [(int(copies), aligned) for copies, aligned in rng.uniform((15, 0.9), (24, 0.92), (8, 2))]
    places = [(22, 0.94), (6, 0.93), (1, 0.92), (6, 0.93), *crowd]
    return {
        name: {"groups": {"duplicated": cell(copies, alignment=aligned)}, "front": name in ("none", "stp", "og-stp")}
        for name, (copies, aligned) in zip(names, places, strict=True)
    }


def test_pareto_names_every_method_and_hides_no_point(rows):
    figure = pareto_figure(rows)
    check(figure)
    scatter, rates, _ = figure.findobj(lambda a: hasattr(a, "get_xlabel"))
    assert [t.get_text() for t in rates.get_yticklabels()] == sorted(
        rows, key=lambda n: (rows[n]["groups"]["duplicated"]["copy_rate"], -rows[n]["groups"]["duplicated"]["alignment"])
    )
    assert {"plain guidance (none)", "other mitigations"} < set(legend_of(figure))
    marked = [line for line in scatter.lines if line.get_marker() in ("o", "s")]
    assert sum(len(line.get_xdata()) for line in marked) == len(rows)
    assert all(line.get_markerfacecolor() == "none" for line in marked)  # what lies under one still shows
    whiskers = {tuple(line.get_xdata()) for line in rates.lines if len(line.get_xdata()) == 2}
    assert whiskers == {tuple(row["groups"]["duplicated"]["copy_rate_interval"]) for row in rows.values()}


def test_names_cover_neither_each_other_nor_points_and_lines():
    rng = np.random.default_rng(1)
    points = 0.45 + 0.1 * rng.random((14, 2))
    line = np.array([(0.0, 0.5), (1.0, 0.5)])
    figure, ((axes,),) = make_figure(6, 4)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.plot(*points.T, "o", markersize=4)
    place_names(axes, [(f"name {i}", tuple(p), "black") for i, p in enumerate(points)], [line])
    boxes = [box for t, box in texts_of(figure) if t.get_text().startswith("name")]
    assert len(boxes) == 14
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    across, up = axes.transData.transform(points).T
    assert not any(
        ((box.x0 < across) & (across < box.x1) & (box.y0 < up) & (up < box.y1)).any() for box in boxes
    )
    at = axes.transData.transform((0, 0.5))[1]
    assert not any(box.y0 < at < box.y1 for box in boxes)


@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.slow), 5])
def test_dose_shows_its_whole_caption_and_what_the_lines_are(n):
    names = ["none", "og-stp", "train:random_caption_replacement", LONG, "train:hard_threshold=8"][:n]
    points = [{"dose": 2**i, "duplicated": cell(2 * i), "control": cell(0)} for i in range(9)]
    curves = {name: {"points": list(points)} for name in names}
    caption = f"4 images a dose, 3 training seeds × 2 images of each, n = 24 a point; copy: pixels-32 ≥ 0.860 ({RULE})"
    figure = dose_figure(curves, caption, 0.01)
    check(figure)
    told = " ".join(t.get_text() for t, _ in texts_of(figure)).split()
    assert set(caption.split()) <= set(told)
    assert {"chance", "controls", "duplicated images, 95% interval"} <= set(legend_of(figure))
    assert ("the first panel's curve" in legend_of(figure)) == (n > 1)


@pytest.fixture
def measurements():
    return [
        {
            "step": 25 * i,
            "guidance_scale": 7.5,
            "num_inference_steps": 25,
            "copy_threshold": 0.86,
            "threshold_rule": RULE,
            "groups": {
                group: cell(copies, prediction_gap=gap, prediction_gap_interval=(gap - 0.3, gap + 0.2))
                for group, copies, gap in (
                    ("duplicated", 3 * i, 1.5),
                    ("control", 1, 1.9),
                    ("heldout", 0, 1.6),
                )
            },
        }
        for i in range(1, 8)
    ]


def test_monitor_tells_its_groups_apart_without_colour(measurements, tmp_path):
    figure = monitor_figure(measurements, 0.5)
    check(figure)
    assert "stop at 0.5" in legend_of(figure)
    rates = figure.axes[0]
    assert len({(line.get_marker(), line.get_linestyle()) for line in rates.lines[:3]}) == 3
    draw_monitor(measurements, tmp_path / "monitor.png")
    assert [f.name for f in tmp_path.iterdir()] == ["monitor.png"]


def test_plan_labels_every_line():
    orders = np.sort(np.random.default_rng(0).integers(0, 25, (20, 1200)), axis=1)
    names = (
        "recall",
        "edges",
        "magnitude:n=4,steps=1",
        "anisotropy:n=1",
        "cliques:n=2,clique=2,num_inference_steps=8",
        "recall:n=1",
        "images alone",
    )
    curves = dict(zip(names, orders, strict=False))
    figure = plan_figure(orders, curves, 24, 300)
    check(figure)
    assert legend_of(figure) == ["uniform: 90% of the random orders", "uniform: mean", *curves]
    assert "all 24 known leaks" in [t.get_text() for t, _ in texts_of(figure)]
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == len(figure.axes[0].lines)


def test_returns_say_what_is_a_copy():
    rows = [("duplicated", [(noise(i), "", False), (noise(i, 1), "0.99", True), None]) for i in range(3)]
    figure = returns_figure(
        rows, ["target", "its own caption\nplain guidance", "paraphrases of the caption\nog-stp-layout"]
    )
    check(figure)
    told = [t.get_text() for t, _ in texts_of(figure)]
    assert (told.count("0.99 copy"), told.count("not possible"), told.count("duplicated")) == (3, 3, 3)


def test_the_papers_figures():
    rng = np.random.default_rng(0)

    def sweep(copies):
        return [
            cell(k, 96, alignment=0.9 - 0.02 * i, sim95=0.98 - 0.02 * i, transition_timestep=t)
            for i, (k, t) in enumerate(zip(copies, (950, 900, 800, 700, 600, 400), strict=True))
        ]

    drawn = {
        "delayed": sweep((84, 80, 66, 48, 39, 18)),
        "opposite": sweep((80, 75, 50, 22, 7, 0)),
        "plain": sweep([89] * 6)[0],
        "unguided": rng.integers(0, 999, 96),
        "against": rng.integers(300, 999, 96),
        "likeness": [np.zeros(24)],
    }
    records = [SimpleNamespace(prompt_index=i, seed=s, image_id="a") for i in range(3) for s in range(2)]
    curves = SimpleNamespace(
        of=lambda method: records,
        samples=SimpleNamespace(open=lambda record: noise(record.seed)),
        gaps=lambda method, group: (rng.random((8, 10)), np.arange(999, 0, -100)),
    )
    says = "The share of copies falls from about 1 to about 0 with the timestep at which guidance starts"
    claims = [
        SimpleNamespace(
            number=i, held=i % 2 == 0, says=says, evidence="0.93 from the start, 0.19 from t = 400"
        )
        for i in range(1, 8)
    ]
    for number, figure in all_figures(
        curves, drawn, claims, {"a": SimpleNamespace(open=lambda: noise(0))}, 0.86
    ):
        check(figure)
        assert ("did not hold" in figure._suptitle.get_text()) == (number % 2 == 1)


def test_grid_names_its_rows_and_columns(tmp_path):
    data = training_set(tmp_path / "train", 12)
    methods, groups = {"none": {}, "og-stp-layout": {}}, ("duplicated", "control")
    folder = samples_folder(tmp_path / "samples", data, lambda *_: False, methods, groups)
    draw_grid(folder, tmp_path / "train", tmp_path / "grid.png", {"duplicated": 3, "control": 2})
    assert Image.open(tmp_path / "grid.png").width > 500
    with pytest.raises(InputError, match="no prompts of the groups empty"):
        draw_grid(folder, tmp_path / "train", tmp_path / "grid.png", {"empty": 2})
    rows = ("training image", "plain guidance", "og-stp-layout")
    column = "a frog and a banana on a purple background", {row: noise(0) for row in rows}
    figure = grid_figure({"duplicated": [column] * 3, "control": [column]})
    for text, box in texts_of(figure):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text.get_text()
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text.get_text()
        assert text.get_fontsize() >= SMALL
    told = [t.get_text().replace("\n", " ") for t, _ in texts_of(figure)]
    assert told.count(column[0]) == 4
    assert {*rows, "captions of control images"} < set(told)


def test_a_picture_appears_whole_and_leaves_pyplot_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure, _ = make_figure(2, 2)
    save_figure(figure, tmp_path / "a.png")
    assert [f.name for f in tmp_path.iterdir()] == ["a.png"]
    assert dict(matplotlib.rcParams) == before


def test_lines_break_between_words():
    assert lines_of("one two three", 8) == "one two\nthree"
    assert lines_of("incomprehensibilities", 8) == "incomprehensibilities"
