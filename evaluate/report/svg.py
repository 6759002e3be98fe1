"""The report's figures as inline SVG: colours come from the page's stylesheet, so one drawing serves light,
dark and paper."""

from rotescope.common.wording import PROMPTS, percent
from rotescope.evaluate.report.canvas import CHARACTER, Canvas, scale, ticks
from rotescope.evaluate.report.page_tables import heading

WIDE, NARROW = (
    760,
    344,
)  # pixels: each figure is drawn for a desk and for a phone, and the stylesheet shows one


def both(draw, *args):
    """Draw for desk and phone."""
    return f'<div class="wide">{draw(*args, WIDE)}</div><div class="narrow">{draw(*args, NARROW)}</div>'


# ----- similarity


def strip_rows(report):
    """-> [(label, counts, above chance)]: the nulls, then each method and group."""
    counts = report.histogram
    rows = [("Training images, to one another", counts.background, False)]
    if sum(counts.heldout):
        rows.append(("Held-out pictures, never seen", counts.heldout, False))
    for method, groups in counts.methods.items():
        for group, found in groups.items():
            label = heading(method, report[method].label) + ("" if group == "ungrouped" else f", {group}")
            rows.append((label, found, report[method][group].above_chance))
    return rows


def strips(report, width):
    """The drawing as SVG; see draw_strips."""
    return draw_strips(report, width).svg()


def draw_strips(report, width):
    """Histograms over one axis, one strip each; what lies beyond the threshold is a copy."""
    rows, edges, threshold = strip_rows(report), report.histogram.edges, report.copy_threshold
    narrow, top = width < 500, 26
    left, right, height = (0, 46, 50) if narrow else (206, 56, 36)
    bottom = top + height * len(rows)
    shares = [_beyond(counts, edges, threshold) for _, counts, _ in rows]
    c = Canvas(
        width,
        bottom + 38,
        "Similarity to the nearest training image",
        "; ".join(
            f"{label}: {percent(part)} over the threshold"
            for (label, _, _), part in zip(rows, shares, strict=True)
        ),
    )
    x = scale(edges[0], edges[-1], left, width - right)
    for i, ((label, counts, above), part) in enumerate(zip(rows, shares, strict=True)):
        base = top + height * (i + 1)
        c.text(0, base - (height - 14 if narrow else 7), label, "label", "start")
        y = scale(0, max(counts) or 1, base, base - height + (20 if narrow else 8))
        first = _first_above(edges, threshold)
        for bins, style in ((range(first), "calm"), (range(first, len(counts)), "copy" if above else "over")):
            c.path(_steps(edges, counts, bins, x, y), f"area {style}", closed=True)
        c.line(left, base, width - right, base, "rule")
        c.text(width, base - 7, percent(part), "value copy" if above else "value", "end")
    c.line(x(threshold), top - 8, x(threshold), bottom, "threshold")
    c.text(x(threshold), top - 12, f"copy from {threshold:.2f}", "value")
    for v in ticks(edges[0], 1, 4 if narrow else 7):
        c.line(x(v), bottom, x(v), bottom + 4, "rule")
        c.text(x(v), bottom + 18, f"{v:g}")
    c.text((left + width - right) / 2, bottom + 35, "similarity to the nearest training image")
    return c


def _first_above(edges, threshold):
    return next((i for i, edge in enumerate(edges) if edge >= threshold - 1e-5), len(edges))  # they are sums of floats


def _beyond(counts, edges, threshold):
    return sum(counts[_first_above(edges, threshold) :]) / sum(counts) if sum(counts) else None


def _steps(edges, counts, bins, x, y):
    """The outline of some bins, from the first to the last that is not empty."""
    used = [i for i in bins if counts[i]]
    if not used:
        return []
    tops = [(x(edges[i + side]), y(counts[i])) for i in range(used[0], used[-1] + 1) for side in (0, 1)]
    return [(tops[0][0], y(0)), *tops, (tops[-1][0], y(0))]


# ----- prediction gap


def gaps(curves, label, width):
    """Median and quartiles of ‖ε_cond − ε_uncond‖ against the timestep, from noise on the left to the image
    on the right."""
    narrow, left, top, bottom = width < 500, 34, 32 + 20 * len(curves), 270
    c = Canvas(
        width,
        bottom + 40,
        f"Prediction gap under {label}",
        "; ".join(
            f"{PROMPTS.get(g, g)}: {v.median[0]:.2f} at first, {v.median[-1]:.2f} at last"
            for g, v in curves.items()
        ),
    )
    last, first = (
        min(min(v.timesteps) for v in curves.values()),
        max(max(v.timesteps) for v in curves.values()),
    )
    highest = 1.05 * max(max(v.high) for v in curves.values())
    x, y = scale(first, last, left, width - 8), scale(0, highest, bottom, top)
    _axes(c, left, bottom, x, y, ticks(last, first, 4 if narrow else 6), ticks(0, highest, 4))
    c.text((left + width) / 2, bottom + 36, "timestep (noise to image)")
    c.text(0, top - 10, "prediction gap", anchor="start")
    for i, (group, v) in enumerate(curves.items()):
        style = "copy" if group == "duplicated" else "calm"
        low, median, high = (
            [(x(t), y(g)) for t, g in zip(v.timesteps, gaps, strict=True)]
            for gaps in (v.low, v.median, v.high)
        )
        c.path([*high, *low[::-1]], f"band {style}", closed=True)
        c.path(median, f"curve {style}")
        c.line(left, 12 + 20 * i, left + 22, 12 + 20 * i, f"curve {style}")
        c.text(left + 30, 16 + 20 * i, f"{PROMPTS.get(group, group)}, {v.n:,} images", "label", "start")
    return c.svg()


def _axes(c, left, bottom, x, y, x_ticks, y_ticks, write=lambda v: f"{v:g}"):
    for v in y_ticks:
        c.line(left, y(v), c.width - 4, y(v), "rule")
        c.text(left - 7, y(v) + 4, f"{v:g}", anchor="end")
    for v in x_ticks:
        words = write(v)
        half = CHARACTER * len(words) / 2
        c.text(min(max(x(v), half), c.width - half), bottom + 18, words)


# ----- trade-off


def tradeoff_points(report):
    """-> [(family, label, copy rate, interval, alignment)]: the sweep's two curves, and the methods that lie
    on neither."""
    points = [(p.family, f"{p.transition_timestep:g}", p) for p in report.sweep]
    swept = {(p.before, p.transition_timestep) for p in report.sweep}
    for method, found in report.methods.items():
        settings, cell = found.settings, found.groups.get("duplicated") or next(iter(found.groups.values()))
        on_a_curve = (settings.get("before"), settings.get("transition")) in swept and settings.get(
            "colour"
        ) is None
        if method == "none" or not on_a_curve:
            points.append(("plain" if method == "none" else "method", found.label, cell))
    return [
        (family, label, p.copy_rate.value, (p.copy_rate.low, p.copy_rate.high), p.alignment)
        for family, label, p in points
        if p.alignment is not None
    ]


SHAPES = {
    "delayed": "delayed guidance, by its transition τ",
    "opposite": "opposite guidance, by its transition τ",
    "method": "method of the table",
    "plain": "plain guidance",
}


def tradeoff(report, width):
    """The drawing as SVG; see draw_tradeoff."""
    return draw_tradeoff(tradeoff_points(report), width).svg()


def draw_tradeoff(points, width):
    """Alignment against copy rate: left and up is better. points: as tradeoff_points has them."""
    narrow = width < 500
    families = [f for f in SHAPES if any(p[0] == f for p in points)]
    lines = len(families) if narrow else -(-len(families) // 2)
    left, top = 40, 40 + 20 * lines
    bottom = top + (300 if narrow else 290)
    c = Canvas(
        width,
        bottom + 40,
        "Alignment against copy rate",
        "; ".join(
            f"{family} {label}: {percent(rate)} copied, alignment {aligned:.2f}"
            for family, label, rate, _, aligned in points
        ),
    )
    low, high, most = (
        min(p[4] for p in points),
        max(p[4] for p in points),
        min(max(0.1, *(p[3][1] for p in points)), 1),
    )
    pad = max((high - low) * 0.18, 0.02)
    x, y = scale(0, most, left + 10, width - 26), scale(low - pad, high + pad, bottom, top)
    _axes(c, left, bottom, x, y, ticks(0, most, 4 if narrow else 8), ticks(low - pad, high + pad, 5), percent)
    c.text((left + width) / 2, bottom + 36, "copy rate")
    c.text(0, top - 12, "text-image agreement", anchor="start")
    for i, family in enumerate(families):
        _legend(c, *((0, 12 + 20 * i) if narrow else (left + 330 * (i % 2), 12 + 20 * (i // 2))), family)
    for _, _, _, (least, greatest), aligned in points:
        c.line(x(least), y(aligned), x(greatest), y(aligned), "whisker")
        c.keep_clear([(x(least), y(aligned)), (x(greatest), y(aligned))])
    for family in ("delayed", "opposite"):
        curve = [(x(p[2]), y(p[4])) for p in points if p[0] == family]
        c.path(curve, f"curve ink {family}")
        c.keep_clear(curve)
    for family, _, rate, _, aligned in points:  # a ring round a dot shows both
        _mark(c, x(rate), y(aligned), family)
    for _, label, rate, _, aligned in sorted(
        points, key=lambda p: p[0] in ("delayed", "opposite")
    ):  # names first
        c.label(x(rate), y(aligned), label, "value")
    return c


def _mark(c, x, y, family):
    c.taken.append((x - 6, y - 6, x + 6, y + 6))
    if family == "delayed":
        c.add("circle", cx=x, cy=y, r=6.0, class_="mark hollow")
    elif family == "opposite":
        c.add("circle", cx=x, cy=y, r=4.0, class_="mark ink")
    else:
        corners = (
            [(-5, -5), (5, -5), (5, 5), (-5, 5)] if family == "plain" else [(0, -6), (6, 0), (0, 6), (-6, 0)]
        )
        c.path([(x + across, y + down) for across, down in corners], "mark ink", closed=True)


def _legend(c, x, y, family):
    if family in ("delayed", "opposite"):
        c.line(x, y, x + 24, y, f"curve ink {family}")
    _mark(c, x + 12, y, family)
    c.text(x + 32, y + 4, SHAPES[family], "label", "start")
