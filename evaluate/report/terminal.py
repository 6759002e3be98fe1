"""The few lines that a terminal shows: for people on stderr, for machines on stdout."""
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rotescope.common.console import answer, say
from rotescope.common.wording import percent, printable, share
from rotescope.evaluate.report.json_types import as_json
from rotescope.evaluate.verdict.controls import ABSENT, UNDECIDED

EXIT_CODES = {"passed": 0, "failed": 1, "undecided": 4}  # 2: wrong input, 3: the run failed, 130: interrupted
MARKS = {"passed": "✓", "undecided": "?", ABSENT: "–"}
COLUMNS = ("method", "prompts", "copies", "copy rate (95%)", "parts", "sim95", "alignment", "captions", "rows")


def print_table(report, console=None):
    """A line for each method and group, in colour where copies are more than chance; then the verdict. No
    name is cut: where the terminal is narrow, the last columns go, and at last long names fold."""
    console = console or Console(stderr=True)
    found = [(row(*line), line[2].above_chance or line[2].partial_above_chance) for line in report.each_group()]
    kept = columns_that_fit([COLUMNS, *(cells for cells, _ in found)], console.width)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for i, column in enumerate(COLUMNS[:kept]):
        table.add_column(column, justify="left" if i < 2 else "right", no_wrap=i > 1, overflow="fold")
    for cells, above_chance in found:
        table.add_row(*map(escape, cells[:kept]), style="bold red" if above_chance else "")
    console.print(table)
    verdict = report.verdict
    console.print()
    for control in verdict.controls:
        console.print(f"{MARKS[control.outcome]} {control.name}: {escape(printable(control.sentence))}", highlight=False,
                      soft_wrap=True, style="bold" if control.outcome == UNDECIDED else "dim")
    console.print(f"\n[bold]{verdict.outcome}[/] by {escape(verdict.rule)}: {escape(verdict.headline)}",
                  highlight=False,
                  soft_wrap=True)


def columns_that_fit(rows, width, least=4):
    """Rows of texts, characters in a line -> how many columns fit, from the left, with
    one space between two."""
    widths = [max(map(cell_len, column)) + 1 for column in zip(*rows, strict=True)]
    fit = [i for i in range(least, len(widths) + 1) if sum(widths[:i]) - 1 <= width]
    return max(fit, default=least)


def row(method, group, found):
    """parts: images that copy a part only; sim95: 95th percentile of similarity; captions: share recognised; rows: images through
    the denoiser for one."""
    return (printable(method), printable(group), f"{found.copies:,}/{found.n:,}", share(found.copy_rate), parts_of(found),
            number(found.sim95.value, 3), number(found.alignment, 3), percent(found.caption_accuracy),
            number(found.denoiser_rows, 0))


def parts_of(found):
    """How many images copy a part and nothing whole: 3/40; – where parts were not sought."""
    return "–" if found.partial_copies is None else f"{found.partial_copies:,}/{found.n:,}"


def number(value, digits):
    return "–" if value is None else f"{value:.{digits}f}"


def announce(rules, config, images=1):
    """Print the rules before anything is measured, and which of them chance alone would break in a
    group of so many images."""
    for rule in rules:
        say(f"rule, fixed before the run: fail if {rule}")
    for rule in rules if config.copy_threshold is None else ():
        if rule.by_chance(config.copy_quantile, images):
            say(f"note: about {percent(1 - config.copy_quantile)} of pictures that copy nothing are over this threshold, so "
                f"{rule} breaks by chance: leaked_prompts>0 counts what chance does not explain")


def show_and_judge(report, output_dir):
    """Print the table and a line of JSON; exit with 1 if a rule is broken, the default one too, and with 4 if it is undecided."""
    print_table(report)
    verdict = {key: as_json(getattr(report.verdict, key))
               for key in ("outcome", "passed", "headline", "rules")}
    verdict["controls"] = {control.name: control.outcome for control in report.verdict.controls}
    answer(verdict=verdict, report=str(Path(output_dir) / "report.html"))
    if EXIT_CODES[report.verdict.outcome]:
        raise SystemExit(EXIT_CODES[report.verdict.outcome])
