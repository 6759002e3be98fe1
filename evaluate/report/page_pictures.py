"""What the page shows: pairs, copies of a part, the same prompt under every method, figures."""
import math

from PIL import Image, ImageDraw

from rotescope.datasets.images.data_uri import data_uri
from rotescope.evaluate.report import svg as charts
from rotescope.evaluate.report.page_tables import tables

SHOWN = 12                                 # pairs of the first method; a third of it of the others
COLUMNS = {"duplicated": 8, "control": 4}  # prompts in the grid; of another group, 8
THUMBNAIL = 192                            # pixels; smaller images go in as they are
WHOLE = (0, 0, 1, 1)                       # the region that needs no frame


def shown_pairs(report):
    """The closest pairs of each method, one for each training image -> [(method, copies, n, pairs
    with both pictures)]."""
    found = []
    for i, method in enumerate(report.methods):
        own = [p for p in report.pairs if p.method == method]
        chosen = _closest(own)[:SHOWN // 3 if i else SHOWN]
        found.append((method, sum(p.is_copy for p in own), len(own), [vars(p) | {
            "generated_uri": _uri(report.pictures.generated(p.image)),
            "training_uri": _uri(report.pictures.training(p.nearest))} for p in chosen]))
    return found


def _closest(found):
    """The first of each training image."""
    closest = {}
    for p in found:
        closest.setdefault(p.nearest, p)
    return list(closest.values())


def shown_parts(report):
    """-> [(kind, found, threshold, the closest, one for each training image, with the regions
    drawn on both pictures)]."""
    made = []
    for kind, threshold in (report.partial_thresholds or {}).items():
        own = [p for p in report.partial if p.kind == kind]
        closest = [_with_regions(report, p) for p in _closest(own)[:SHOWN // 3]]
        made.append((kind, len(own), threshold, closest))
    return made


def _with_regions(report, p):
    return vars(p) | {
        "generated_uri": _uri(marked(report.pictures.generated(p.image), [r.generated for r in p.regions])),
        "training_uri": _uri(marked(report.pictures.training(p.nearest), [r.training for r in p.regions]))}


def marked(picture, regions):
    """A copy of the picture, large enough for thin lines, with a frame around each region of its centre
    square that is not all of it; None stays."""
    if picture is None:
        return None
    factor = max(1, math.ceil(THUMBNAIL / max(picture.size)))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.NEAREST)
    edge, draw = min(picture.size), ImageDraw.Draw(picture)
    left, top, line = (picture.width - edge) / 2, (picture.height - edge) / 2, max(2, edge // 90)
    for x, y, w, h in (r for r in regions if tuple(r) != WHOLE):
        box = [left + x * edge, top + y * edge, left + (x + w) * edge - 1, top + (y + h) * edge - 1]
        draw.rectangle(box, outline="white", width=2 * line)
        draw.rectangle(box, outline="black", width=line)
    return picture


def grid(report):
    """The same prompts and seed under every method -> [(group, seed, prompts, rows of (label,
    cells))]; [] without prompts."""
    known = [p for p in report.pairs if p.prompt and p.seed is not None]
    seed, found = min((p.seed for p in known), default=None), []
    at = {(p.method, p.group, p.prompt_index): p for p in known if p.seed == seed}
    for group in tables(report):
        indices = spread_over(sorted({i for _, g, i in at if g == group}), COLUMNS.get(group, 8))
        told = [next(p for (_, g, i), p in at.items() if (g, i) == (group, index)) for index in indices]
        rows = [(label, [_generated(report, m, at.get((m, group, i))) for i in indices])
                for m, label in report.labels.items()]
        if any(p.expected for p in told):
            rows.insert(0, ("Training image", [_expected(report, p) for p in told]))
        if told:
            found.append((group, seed, [p.prompt for p in told], rows))
    return found


def _generated(report, method, pair):
    alt = f"generated with {report[method].label}" + (", a copy" if pair and pair.is_copy else "")
    return pair and {"uri": _uri(report.pictures.generated(pair.image)), "alt": alt, "is_copy": pair.is_copy}


def _expected(report, pair):
    picture = report.pictures.training(pair.expected)
    return pair.expected and {"uri": _uri(picture), "alt": "the training image of this caption",
                              "is_copy": False}


def spread_over(items, n):
    """n of the items, evenly from first to last."""
    if not len(items) > n > 1:
        return list(items)
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]


def _uri(picture):
    return data_uri(picture, THUMBNAIL)


def page_figures(report):
    """-> {strips, tradeoff or None, gaps: [(method, figure)]}."""
    curves = report.prediction_gaps
    several = len(charts.tradeoff_points(report)) > 1
    drawn = [m for m in curves if m in ("none", "dtp")] or list(curves)[:1]
    return {"strips": charts.both(charts.strips, report),
            "tradeoff": charts.both(charts.tradeoff, report) if several else None,
            "gaps": [(m, charts.both(charts.gaps, curves[m], report[m].label)) for m in drawn]}
