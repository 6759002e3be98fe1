"""What a repair leaves for people and machines: repair.html, repair.json, a section for a model card."""
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rotescope.common.outputs import versions, write_json, write_text
from rotescope.common.settings import plain
from rotescope.common.wording import percent, printable, share
from rotescope.evaluate.report import html
from rotescope.evaluate.report.canvas import Canvas, scale
from rotescope.evaluate.report.json_types import as_json
from rotescope.evaluate.report.terminal import number
from rotescope.evaluate.statistics.retrigger_tally import ROUTES
from rotescope.procedures.repair.proof import LEAKING, STATUSES
from rotescope.procedures.repair.trials import RepairFindings, by_way
from rotescope.train.repair.registry import WAYS

MEANINGS = {
    "strength": "the whole LoRA weaker, by one number",
    "base-anchored": "channels of each layer's update that align weakly with the base's principal subspace are taken out "
                     "(after the abstract of arXiv 2605.10439)",
    "leak-directed": "channels that serve the leaking pictures more than the others are taken out",
    "unlearn": "a short fine-tune that leads leaking captions back to the base's prediction and keeps the LoRA's own for others"}


def write_repair(found: RepairFindings, config, folder: Path, hashes: dict[str, str]) -> None:
    """repair.json, repair.html and model_card.md into a folder that is there."""
    told = repair_json(found) | {"created": datetime.now(UTC).isoformat(timespec="seconds"), "hashes": hashes,
                                 "versions": versions(), "config": plain(config)}
    write_json(folder / "repair.json", told)
    write_text(folder / "repair.html", repair_page(found, told))
    write_text(folder / "model_card.md", repair_card(found))


def repair_json(found: RepairFindings) -> dict:
    """What was found, as JSON types; a way's costs beside its name."""
    return {"outcome": found.outcome, "headline": headline(found), "file": found.file,
            "chosen": as_json(found.chosen), "leaked_training_images": found.leaked, "before": as_json(found.before),
            "after": as_json(found.after), "trials": as_json(found.trials), "proof": as_json(found.proof),
            "notes": list(found.notes),
            "ways": {name: {"meaning": MEANINGS[name], "cost": way.cost, "needs_data": way.needs_data}
                     for name, way in WAYS.items()}}


def headline(found: RepairFindings) -> str:
    """One sentence: what came of it."""
    if found.chosen and found.before and found.after:
        of = ", on other seeds" if found.after.seeds != found.before.seeds else ""
        ended = {"passed": "passes its audit", "failed": "fails its audit"}.get(found.outcome, "is undecided in its audit")
        return (f"The repaired LoRA {ended}: {found.after.copies:,} of {found.after.images:,} images copy training images{of}, "
                f"where {found.before.copies:,} of {found.before.images:,} did before ({found.chosen.label}).")
    if found.before:
        return "No repair that was tried passes: the LoRA was left as it is."
    return "Files were written, and nothing was judged: no training data were given."


def repair_page(found: RepairFindings, told: dict) -> str:
    """-> the page. The template engine escapes what others wrote."""
    environment = Environment(loader=FileSystemLoader([Path(__file__).parent, Path(html.__file__).parent]), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "number": number, "share": share}
    rows = [(name, figures) for name, figures in (("before", found.before), ("after", found.after)) if figures]
    return printable(environment.get_template("repair.html.j2").render(
        f=found, told=told, headline=headline(found), rows=rows, meanings=MEANINGS, curves=list(by_way(found.trials)),
        drawing=curves_svg(found), routes=ROUTES, statuses=STATUSES))


def curves_svg(found: RepairFindings, width: int = 760, height: int = 300) -> str:
    """Copy rate against how much of the update is left, a curve for each way from the LoRA as it is, with 95% intervals; "" where
    nothing was audited."""
    if not found.before:
        return ""
    c = Canvas(width, height, "Copies against what is left of the LoRA",
               "; ".join(f"{t.label}: {percent(t.figures.copy_rate.value)} copies" for t in found.trials if t.figures))
    x, y = scale(1, 0, 48, width - 20), scale(0, 1, height - 44, 14)
    for tick in (0, .25, .5, .75, 1):
        c.line(48, y(tick), width - 8, y(tick), "rule")
        c.text(40, y(tick) + 4, percent(tick), anchor="end")
        c.text(x(tick), height - 26, percent(tick))
    c.text(width / 2, height - 6, "left of the update, by size (from the LoRA as it is to the base)")
    for way, trials in by_way(found.trials):
        points = [(1.0, found.before.copy_rate), *((t.kept, t.figures.copy_rate) for t in trials if t.figures)]
        line = [(x(kept), y(rate.value)) for kept, rate in points]
        kept_way = found.chosen is not None and found.chosen.way == way
        c.path(line, "curve ink" if kept_way else "curve calm")
        for kept, rate in points[1:]:
            c.line(x(kept), y(rate.low), x(kept), y(rate.high), "whisker")
            c.add("circle", cx=x(kept), cy=y(rate.value), r=4, class_="mark ink" if kept_way else "mark hollow")
        c.keep_clear(line)
        c.label(*line[-1], way, "label")
    return c.svg()


def repair_card(found: RepairFindings) -> str:
    """-> Markdown, a section to paste into a README.md."""
    lines = ["## Repair", "", headline(found), ""]
    if found.chosen:
        lines += [f"Way: *{found.chosen.way}*, {found.chosen.dose_name} {found.chosen.dose:g}: {MEANINGS[found.chosen.way]}. "
                  f"{percent(found.chosen.kept)} of the update is left, by size.", ""]
    if found.before and found.after:
        lines += ["| | copies | copy rate (95% interval) | leaked prompts | similarity, 95th pct. | text-image agreement |",
                  "|---|---|---|---|---|---|",
                  *(f"| {name} | {f.copies} of {f.images} | {share(f.copy_rate)} | {f.leaked_prompts} | {number(f.sim95, 3)} | "
                    f"{number(f.alignment, 3)} |" for name, f in (("before", found.before), ("after", found.after))), "",
                  "Few copies in a sample are no proof that none can be made"
                  + (", and an image that its caption no longer brings may come back by other words" if not found.proof else "")
                  + ".", ""]
    lines += [*_proof_lines(found.proof), ""] if found.proof else []
    return "\n".join([*lines, *found.notes, f"Repaired by Rotescope {versions()['rotescope']}.", ""])


def _proof_lines(proof):
    p = min((cell["p_adjusted"] for cell in proof.after[LEAKING].values() if cell["p_adjusted"] is not None), default=None)
    against = "" if p is None else f" Against never-seen pictures the smallest adjusted p is {p:.2g}."
    return [proof.counted + against, *(f"- *{status}*: {meaning}" for status, meaning in STATUSES.items()), "", proof.sentence]
