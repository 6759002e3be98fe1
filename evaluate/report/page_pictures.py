"""What the page shows: pairs, copies of a part, the same prompt under every method, figures."""
from rotescope.datasets.images.data_uri import data_uri
from rotescope.evaluate.report import svg as charts
from rotescope.evaluate.report.match_pictures import FRAMED, framed, joined, laid_on
from rotescope.evaluate.report.page_tables import tables

SHOWN = 12                                 # pairs of the first method; a third of it of the others
COLUMNS = {"duplicated": 8, "control": 4}  # prompts in the grid; of another group, 8
THUMBNAIL = FRAMED                         # pixels; smaller images go in as they are
JOINED = 640                               # pixels of two pictures side by side


def shown_pairs(report):
    """The closest pairs of each method, one for each training image, copies of a part aside, which shown_parts has
    -> [(method, copies, n, pairs with both pictures)]."""
    found = []
    for i, method in enumerate(report.methods):
        own = [p for p in report.pairs if p.method == method]
        chosen = _closest(p for p in own if not p.is_partial)[:SHOWN // 3 if i else SHOWN]
        found.append((method, sum(p.is_copy for p in own), len(own), [_with_pictures(report, p) for p in chosen]))
    return found


def _closest(found):
    """The first of each training image."""
    closest = {}
    for p in found:
        closest.setdefault(p.nearest, p)
    return list(closest.values())


def shown_parts(report):
    """-> the largest copies of a part of each method, one for each training image: [(method, copies of a part, images, whether
    they are more than chance brings, pairs with both pictures)]; [] where none was sought."""
    made = []
    for method, found in report.methods.items() if report.verification else ():
        own = sorted((p for p in report.pairs if p.method == method and p.is_partial), key=lambda p: -p.match.generated_share)
        groups = found.groups.values()
        made.append((method, len(own), sum(g.n for g in groups), any(g.partial_above_chance for g in groups),
                     [_with_pictures(report, p) for p in _closest(own)[:SHOWN // 3]]))
    return made


def _with_pictures(report, p):
    """A Pair as the page shows it: both pictures, with what matches framed, and two more that compare them."""
    generated, training = report.pictures.generated(p.image), report.pictures.training(p.nearest)
    match = p.match if p.match and p.match.training_image == p.nearest else None
    told = vars(p) | {"match": match, "joined_uri": None, "laid_uri": None}
    if match is None:
        return told | {"generated_uri": _uri(generated), "training_uri": _uri(training)}
    if generated and training:
        told |= {"joined_uri": match.points and data_uri(joined(generated, training, match.points), JOINED),
                 "laid_uri": data_uri(laid_on(generated, training, match.transform), JOINED)}
    return told | {"generated_uri": _uri(framed(generated, match.generated_outline)),
                   "training_uri": _uri(framed(training, match.training_outline))}


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
    kind = pair and (", a copy" if pair.is_copy else ", a copy of a part" if pair.is_partial else "")
    alt = f"generated with {report[method].label}{kind or ''}"
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
