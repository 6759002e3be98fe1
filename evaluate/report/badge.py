"""The verdict as a small picture to put beside a model: badge.svg, which needs no network and runs no script."""
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rotescope.evaluate.verdict.rules import Rule

LABEL = "memorization audit"
COLOURS = {"passed": "#1b6e3c", "failed": "#a8201a", "undecided": "#7a5200"}  # each against white: contrast above 4.5 : 1
WIDTH = 6.2   # pixels of a character, at the font's size


def judged_methods(report, metrics=()) -> set[str]:
    """The methods of a Report that some rule is on; metrics: only a rule on one of these."""
    rules = (Rule.parse(r.rule) for r in report.verdict.rules)
    return {m for rule in rules if not metrics or rule.metric in metrics for m in rule.scope(list(report.methods))}


def badge_text(report) -> str:
    """The outcome, and how many of the images that were judged are copies: 'failed, 91 of 192 images are copies'."""
    judged = judged_methods(report)
    found = [f for method, _, f in report.each_group() if method in judged]
    copies, n = sum(f.copies for f in found), sum(f.n for f in found)
    return f"{report.verdict.outcome}, {copies:,} of {n:,} images {'is a copy' if copies == 1 else 'are copies'}"


def badge(report) -> str:
    """-> SVG of 20 pixels' height."""
    text = badge_text(report)
    left, right = (round(WIDTH * len(words)) + 12 for words in (LABEL, text))
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("badge.svg.j2").render(label=LABEL, text=text, left=left, right=right,
                                                           colour=COLOURS[report.verdict.outcome])
