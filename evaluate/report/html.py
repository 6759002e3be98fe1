"""Report -> files: report.html, one page that needs no network, for screen, phone and paper,
and what lies beside it."""
import base64
import hashlib
import re
from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from rotescope.common.outputs import write_json, write_text
from rotescope.common.wording import PROMPTS, percent, printable, share
from rotescope.evaluate.report.badge import badge
from rotescope.evaluate.report.exports import model_card, write_pairs
from rotescope.evaluate.report.page_pictures import grid, page_figures, shown_pairs, shown_parts
from rotescope.evaluate.report.page_tables import columns, headings, lines, sentence, tables, verdict_tiles
from rotescope.evaluate.report.report_types import ReportPictures
from rotescope.evaluate.report.table_layout import method_words, prompts_together
from rotescope.evaluate.report.terminal import number
from rotescope.evaluate.statistics.retrigger_tally import ROUTES

NULL_NAMES = {"heldout": "held-out pictures", "train": "training images against one another"}
HERE = Path(__file__).parent


def write_files(report, folder, redact=False):
    """Everything that people and machines read of a Report, into a folder that is there;
    redact: as render_report has it."""
    write_report(report, folder, redact)
    write_pairs(report, Path(folder) / "pairs.parquet")
    write_text(Path(folder) / "model_card.md", model_card(report))
    write_text(Path(folder) / "badge.svg", badge(report))


def write_report(report, out_dir, redact=False):
    """-> the path of report.html in `out_dir`, report.json beside it. redact: as render_report has it."""
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_json(out_dir / "report.json", report.as_json())
    write_text(out_dir / "report.html", render_report(report, redact))
    return out_dir / "report.html"


def render_report(report, redact=False):
    """-> the page. The template engine escapes captions and names.

    redact: no training image is shown, nor a generated one that copies it whole or in part; captions and figures stay.
    """
    report = withheld(report) if redact else report
    script = (HERE / "report.js").read_text(encoding="utf-8")
    return printable(_environment().get_template("report.html.j2").render(
        r=report, heading=headings(report), prompts=PROMPTS, nulls=NULL_NAMES, tiles=verdict_tiles(report),
        tables=tables(report),
        several=columns(report), shown=shown_pairs(report), grid=grid(report), figures=page_figures(report),
        parts=shown_parts(report), routes=ROUTES, lines=lines(report), redacted=redact, script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()))


def notebook_summary(report):
    """-> HTML for a notebook: the verdict and a line for each method and group, without pictures."""
    return printable(_environment().get_template("summary.html.j2").render(r=report, prompts=PROMPTS))


def _environment():
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True,
                              lstrip_blocks=True)
    environment.filters |= {f.__name__: f for f in (percent, number, share, sentence, unbroken, options_as_code)}
    environment.globals |= {f.__name__: f for f in (prompts_together, method_words)}
    return environment


def withheld(report):
    """The same report, whose pictures of training images, and of their copies, whole or in part, are None."""
    hidden = {p.image for p in report.pairs if p.is_copy or p.is_partial}
    return replace(report, pictures=ReportPictures(
        generated=lambda image: None if image in hidden else report.pictures.generated(image), training=lambda image_id: None))


def options_as_code(text):
    """Names of options as code, so that no line breaks inside one; everything else is escaped."""
    return Markup(re.sub(r"(--[a-z_]+)", r"<code>\1</code>", str(escape(text))))


def unbroken(text):
    """No line break inside an interval."""
    return text.replace("–", "\u2060–\u2060")
