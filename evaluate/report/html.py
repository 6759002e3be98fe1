"""Report -> report.json and report.html: one file that needs no network, for screen, phone and paper."""
import base64
import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageDraw

from rotescope.common.outputs import write_json
from rotescope.common.wording import PARTS, PROMPTS, percent, printable, share, short
from rotescope.evaluate.report import svg as charts
from rotescope.evaluate.report.table_layout import chance_hits, method_words, prompts_together
from rotescope.evaluate.report.terminal import cells_of, number
from rotescope.evaluate.statistics.retrigger_tally import ROUTES
from rotescope.evaluate.verdict.verdict import best

NULL_NAMES = {"heldout": "held-out pictures", "train": "training images against one another"}
LONG_NAMES = {"none": "Plain guidance", "stp": "Delayed guidance", "og-stp": "Opposite, then delayed guidance",
              "og-stp-layout": "Opposite guidance, layout only",
              "dtp": "Delayed guidance, dynamic", "og-dtp": "Opposite guidance, dynamic"}
SHOWN = 12                                 # pairs of the first method; a third of it of the others
COLUMNS = {"duplicated": 8, "control": 4}  # prompts in the grid; of another group, 8
LINES = 2000                               # prompts in the table, the most similar ones
THUMBNAIL = 192                            # pixels; smaller images go in as they are


@dataclass(frozen=True)
class Pictures:
    """Opens what a report shows but does not hold."""
    generated: Callable[[str], Image.Image]          # by `image` of a pair
    training: Callable[[str], Image.Image | None]    # by image_id; None if it is no training image's


class Report(dict):
    """What report.json says, all of it JSON types; `pictures` opens the images."""

    def __init__(self, content, pictures):
        super().__init__(_plain(content))
        self.pictures = pictures


def _plain(value):
    """JSON types; floats to six digits, small ones to six that count, NaN as None; text that UTF-8 can hold."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return None if value != value else round(value, 6) if abs(value) >= 1e-3 else float(f"{value:.6g}")
    return value if value is None or isinstance(value, bool | int) else printable(str(value))


def write_report(report, out_dir, redact=False):
    """-> the path of report.html in `out_dir`, report.json beside it. redact: as render has it."""
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_json(out_dir / "report.json", report)
    (out_dir / "report.html").write_text(render(report, redact), encoding="utf-8")
    return out_dir / "report.html"


def render(report, redact=False):
    """-> the page. The template engine escapes captions and names.

    redact: no training image is shown, nor a generated one that copies it whole or in part; captions and figures stay.
    """
    report = withheld(report) if redact else report
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    script = (Path(__file__).parent / "report.js").read_text(encoding="utf-8")
    environment.filters |= {f.__name__: f for f in (percent, number, share, sentence, unbroken)}
    environment.globals |= {f.__name__: f for f in (chance_hits, prompts_together, method_words)}
    return environment.get_template("report.html.j2").render(
        r=report, heading=heading(report), prompts=PROMPTS, nulls=NULL_NAMES, tiles=tiles(report), tables=tables(report),
        several=columns(report), shown=shown_pairs(report), grid=grid(report), figures=figures(report),
        parts=shown_parts(report), part_words=PARTS, routes=ROUTES, lines=lines(report), redacted=redact, script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode())


def withheld(report):
    """The same report, whose pictures of training images and of their copies are None."""
    hidden = {p["image"] for p in report["pairs"] if p["is_copy"]} | {p["image"] for p in report["partial"]}
    return Report(report, Pictures(
        generated=lambda image: None if image in hidden else report.pictures.generated(image), training=lambda image_id: None))


def sentence(text):
    """With a capital first letter, the others as they are."""
    return text[:1].upper() + text[1:]


def unbroken(text):
    """No line break inside an interval."""
    return text.replace("–", "\u2060–\u2060")


# ----- what the page shows

def tiles(report):
    """The three or four figures under the verdict."""
    methods = {m: {g: c for g, c in groups.items() if g != "settings"} for m, groups in report["methods"].items()}
    first = "none" if "none" in methods else next(iter(methods))
    found = [_tile(report, first, group, cell) for group, cell in methods[first].items()]
    worst = max(methods[first], key=lambda g: methods[first][g]["copy_rate"])
    others = {m: groups[worst] for m, groups in methods.items() if m != first and worst in groups}
    if others:
        method = best(others, methods[first][worst])
        found.append(_tile(report, method, worst, others[method]))
    held = report["background"]["heldout"]
    if held["n"]:
        found.append({"figure": percent(held["copy_rate"]), "name": "Chance", "of": "held-out pictures", "bad": False,
                      "detail": f"{round(held['copy_rate'] * held['n']):,} of {held['n']:,} come as close"})
    return found


def _tile(report, method, group, cell):
    return {"figure": percent(cell["copy_rate"]), "name": sentence(report["labels"][method]), "bad": cell["above_chance"],
            "of": short(group),
            "detail": f"{cell['copies']:,} of {cell['n']:,} copied {share(cell).partition(' ')[2]}"}


def heading(report):
    """{method: what a lay reader would call it}."""
    named = {} if "generated images" in report["labels"].values() else LONG_NAMES
    return {method: named.get(method, sentence(label)) for method, label in report["labels"].items()}


def tables(report):
    """-> {group: [(method, name and settings, figures)]}."""
    found = {}
    for method, group, cell in cells_of(report):
        short = [report["labels"][method]] if method in LONG_NAMES and method != "none" else []
        about = ": ".join(short + [s for s in [settings_in_words(report["methods"][method]["settings"])] if s])
        found.setdefault(group, []).append((method, about, cell))
    return found


def columns(report):
    """Which columns of the table say something."""
    cells = [cell for _, _, cell in cells_of(report)]
    return {"prompts": any(c["n_prompts"] > 1 for c in cells), "rows": any(c["denoiser_rows"] is not None for c in cells),
            "significant": any(c["prompts_significant"] is not None for c in cells)}


def settings_in_words(settings):
    transition = settings.get("transition")
    if transition is None or transition == 1000:  # guided from the start
        return ""
    until = "the gap’s first minimum" if transition == "dynamic" else f"t\u00a0=\u00a0{transition:g}"
    colour = "" if settings.get("colour") is None else f" ({settings['colour']:g} on the mean over the picture)"
    return f"scale {settings['before']:g}{colour} until {until}".replace("-", "−")


def lines(report):
    """The table of prompts: those whose images came closest first, and which of its columns say something."""
    told = sorted((p for p in report["prompts"] if p["prompt"]), key=lambda p: -p["top1_similarity"])
    return {"shown": told[:LINES], "left_out": len(told) > LINES, "own": any(p["own_similarity"] is not None for p in told),
            "p": any(p["p"] is not None for p in told)}


def shown_pairs(report):
    """The closest pairs of each method, one for each training image -> [(method, copies, n, pairs with both pictures)]."""
    found = []
    for i, method in enumerate(report["methods"]):
        own = [p for p in report["pairs"] if p["method"] == method]
        closest = {}
        for p in own:
            closest.setdefault(p["nearest"], p)
        chosen = list(closest.values())[:SHOWN // 3 if i else SHOWN]
        found.append((method, sum(p["is_copy"] for p in own), len(own), [p | {
            "generated_uri": uri(report.pictures.generated(p["image"])),
            "training_uri": uri(report.pictures.training(p["nearest"]))} for p in chosen]))
    return found


def shown_parts(report):
    """-> [(kind, found, threshold, the closest, one for each training image, with the regions drawn on both pictures)]."""
    return [(kind, sum(p["kind"] == kind for p in report["partial"]), threshold, _closest_parts(report, kind))
            for kind, threshold in (report["partial_thresholds"] or {}).items()]


def _closest_parts(report, kind):
    closest = {}
    for p in report["partial"]:
        if p["kind"] == kind:
            closest.setdefault(p["nearest"], p)
    return [p | {"generated_uri": uri(marked(report.pictures.generated(p["image"]), _frames(p, "generated"))),
                 "training_uri": uri(marked(report.pictures.training(p["nearest"]), _frames(p, "training")))}
            for p in list(closest.values())[:SHOWN // 3]]


def _frames(part, picture):
    return [r[picture] for r in part["regions"] if r[picture] != [0, 0, 1, 1]]


def marked(picture, regions):
    """A copy of the picture, large enough for thin lines, with a frame around each region of its centre square; None stays."""
    if picture is None:
        return None
    factor = max(1, math.ceil(THUMBNAIL / max(picture.size)))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.NEAREST)
    edge, draw = min(picture.size), ImageDraw.Draw(picture)
    left, top, line = (picture.width - edge) / 2, (picture.height - edge) / 2, max(2, edge // 90)
    for x, y, w, h in regions:
        box = [left + x * edge, top + y * edge, left + (x + w) * edge - 1, top + (y + h) * edge - 1]
        draw.rectangle(box, outline="white", width=2 * line)
        draw.rectangle(box, outline="black", width=line)
    return picture


def grid(report):
    """The same prompts and seed under every method -> [(group, seed, prompts, rows of (label, cells))]; [] without prompts."""
    known = [p for p in report["pairs"] if p["prompt"] and p["seed"] is not None]
    seed, found = min((p["seed"] for p in known), default=None), []
    at = {(p["method"], p["group"], p["prompt_index"]): p for p in known if p["seed"] == seed}
    for group in tables(report):
        indices = spread_over(sorted({i for _, g, i in at if g == group}), COLUMNS.get(group, 8))
        told = [next(p for (_, g, i), p in at.items() if (g, i) == (group, index)) for index in indices]
        rows = [(report["labels"][m], [_generated(report, m, at.get((m, group, i))) for i in indices]) for m in report["methods"]]
        if any(p["expected"] for p in told):
            rows.insert(0, ("Training image", [_expected(report, p) for p in told]))
        if told:
            found.append((group, seed, [p["prompt"] for p in told], rows))
    return found


def _generated(report, method, pair):
    alt = f"generated with {report['labels'][method]}" + (", a copy" if pair and pair["is_copy"] else "")
    return pair and {"uri": uri(report.pictures.generated(pair["image"])), "alt": alt, "is_copy": pair["is_copy"]}


def _expected(report, pair):
    picture = report.pictures.training(pair["expected"])
    return pair["expected"] and {"uri": uri(picture), "alt": "the training image of this caption", "is_copy": False}


def spread_over(items, n):
    """n of the items, evenly from first to last."""
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)] if len(items) > n > 1 else list(items)


def uri(picture):
    """An image as a data URI: a small one exactly, in PNG; a large one as a thumbnail, in WebP; None stays."""
    if picture is None:
        return None
    stream, small = io.BytesIO(), max(picture.size) <= THUMBNAIL
    if not small:
        picture = picture.copy()
        picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.LANCZOS)
    picture.save(stream, **({"format": "PNG", "optimize": True} if small else {"format": "WEBP", "quality": 88}))
    return f"data:image/{'png' if small else 'webp'};base64,{base64.b64encode(stream.getvalue()).decode()}"


def figures(report):
    """-> {strips, tradeoff or None, gaps: [(method, figure)]}."""
    curves = report["prediction_gaps"]
    drawn = [m for m in curves if m in ("none", "dtp")] or list(curves)[:1]
    return {"strips": charts.both(charts.strips, report),
            "tradeoff": charts.both(charts.tradeoff, report) if len(charts.tradeoff_points(report)) > 1 else None,
            "gaps": [(m, charts.both(charts.gaps, curves[m], report["labels"][m])) for m in drawn]}
