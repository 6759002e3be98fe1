"""What the page says in figures: tiles, tables, and which of their columns say something."""
from rotescope.common.wording import MEANINGS, percent, share, short_name

LINES = 2000  # prompts in the table, the most similar ones


def sentence(text):
    """With a capital first letter, the others as they are."""
    return text[:1].upper() + text[1:]


def heading(method, label):
    """A method's label with a capital first letter; a name that a user types stays as it is typed."""
    return label if label == method else sentence(label)


def verdict_tiles(report):
    """The three or four figures under the verdict."""
    first = "none" if "none" in report.methods else next(iter(report.methods))
    groups = report[first].groups
    made = [_tile(report, first, group) for group in groups]
    best = report.verdict.best
    if best:
        made.append(_best_tile(report, best))
    held = report.background.heldout
    if held.n:
        made.append({"figure": percent(held.copy_rate), "name": "Chance", "of": "held-out pictures",
                     "bad": False,
                     "detail": f"{round(held.copy_rate * held.n):,} of {held.n:,} come as close"})
    return made


def _best_tile(report, best):
    """The best mitigation, by the figures that the verdict states."""
    apart = " on the other seeds" if best.apart else "; picked on these images" if best.optimistic else ""
    tile = _tile(report, best.method, best.group, best.found)
    return tile | {"detail": tile["detail"] + apart}


def _tile(report, method, group, figures=None):
    """figures: instead of those of all its images."""
    found = figures or report[method][group]
    return {"figure": percent(found.copy_rate.value), "name": heading(method, report[method].label),
            "bad": report[method][group].above_chance,
            "of": short_name(group),
            "detail": f"{found.copies:,} of {found.n:,} copied {share(found.copy_rate).partition(' ')[2]}"
                      + (f"; {found.partial_copies:,}{' more' if found.copies else ''} in part" if found.partial_copies else "")}


def headings(report):
    """{method: its name, as a heading}."""
    return {method: heading(method, label) for method, label in report.labels.items()}


def tables(report):
    """-> {group: [(method, its meaning and settings, GroupFindings)]}."""
    made = {}
    for method, group, found in report.each_group():
        about = [MEANINGS.get(method), settings_in_words(report[method].settings)]
        made.setdefault(group, []).append((method, ": ".join(filter(None, about)), found))
    return made


def columns(report):
    """Which columns of the table say something."""
    findings = [found for _, _, found in report.each_group()]
    return {"prompts": any(f.n_prompts > 1 and f.prompts_significant is not None for f in findings),
            "rows": any(f.denoiser_rows is not None for f in findings),
            "significant": any(f.prompts_significant is not None for f in findings)}


def settings_in_words(settings):
    transition = settings.get("transition")
    if transition is None or transition == 1000:  # guided from the start
        return ""
    colour = "" if settings.get("colour") is None else f" ({settings['colour']:g} on the mean over the picture)"
    return f"scale {settings['before']:g}{colour} until {_point_in_words(transition)}".replace("-", "−")


def _point_in_words(point):
    """Where a sampler turns, as settings have it."""
    kind, _, x = str(point).partition(":")
    words = {"dynamic": "the gap’s first minimum", "noise": f"a noise share of {x}", "steps": f"{x} of the steps"}
    return words.get(kind) or f"t\u00a0=\u00a0{point:g}"


def lines(report):
    """The table of prompts: those whose images came closest first, and which of its columns say something."""
    told = sorted((p for p in report.prompts if p.prompt), key=lambda p: -p.top1_similarity)
    return {"shown": told[:LINES], "left_out": len(told) > LINES,
            "own": any(p.own_similarity is not None for p in told),
            "p": bool(told)}
