"""A table of texts: as Markdown in a file, or on a terminal in blocks of columns that fit, so that nothing is cut."""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class TextTable:
    """Rows of texts under heads; `note` says under it what the numbers mean, `title` above it what they are of. names: whether
    names that a user can type stand in the first column (rows), or over the others (heads)."""
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    title: str = ""
    names: str = "rows"

    def markdown(self) -> str:
        """For a file: names as code, the note under the table."""
        first = "`{}`" if self.names == "rows" else "{}"
        heads = self.heads if self.names == "rows" else (self.heads[0], *(f"`{head}`" for head in self.heads[1:]))
        lines = [_line(heads), "|---" * len(heads) + "|", *(_line((first.format(row[0]), *row[1:])) for row in self.rows)]
        return "\n".join(lines) + (f"\n\n{self.note}\n" if self.note else "\n")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self.title:
            yield Text(self.title, "bold")
        for columns in blocks_that_fit([self.heads, *self.rows], options.max_width):
            table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
            for i in columns:
                table.add_column(self.heads[i], justify="right" if i else "left", overflow="fold")
            for row in self.rows:
                table.add_row(*(Text(row[i]) for i in columns))
            yield table
            yield ""
        if self.note:
            yield Text(self.note)


def blocks_that_fit(rows: Sequence[Sequence[str]], width: int, gap: int = 2) -> list[list[int]]:
    """Rows of texts, characters in a line -> the columns of each block: the first one again, and as many others as fit."""
    widths = [max(map(cell_len, column)) + gap for column in zip(*rows, strict=True)]
    blocks, used = [[0]], widths[0]
    for i, wide in enumerate(widths[1:], 1):
        if used + wide - gap > width and len(blocks[-1]) > 1:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(i)
        used += wide
    return blocks


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

