"""The few lines that a terminal shows, on stderr."""
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rotescope.common.wording import percent, share

COLUMNS = ("method", "prompts", "copies", "copy rate (95%)", "sim95", "alignment", "captions", "rows")


def print_table(report, console=None):
    """A line for each method and group, in colour where copies are more than chance; then the verdict."""
    console = console or Console(stderr=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if i < 2 else "right", no_wrap=i > 1)
    for method, group, cell in cells_of(report):
        table.add_row(*map(escape, row(method, group, cell)), style="bold red" if cell["above_chance"] else "")
    console.print(table)
    verdict = report["verdict"]
    console.print(f"\n[bold]{verdict['outcome']}[/] by {escape(verdict['rule'])}: {escape(verdict['headline'])}", highlight=False,
                  soft_wrap=True)


def cells_of(report):
    """-> (method, group, figures), in the order of the report."""
    return [(m, g, cell) for m, groups in report["methods"].items() for g, cell in groups.items() if g != "settings"]


def row(method, group, cell):
    """sim95: 95th percentile of similarity; captions: share recognised; rows: images that pass through the denoiser for one."""
    return (method, group, f"{cell['copies']:,}/{cell['n']:,}", share(cell), number(cell["sim95"], 3),
            number(cell["alignment"], 3), percent(cell["caption_accuracy"]), number(cell["denoiser_rows"], 0))


def number(value, digits):
    return "–" if value is None else f"{value:.{digits}f}"
