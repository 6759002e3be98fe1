"""A table of texts loses nothing, however narrow the terminal."""
import io

import pytest
from rich.console import Console

from rotescope.common.text_table import TextTable, blocks_that_fit

TABLE = TextTable(("method", "copies", "alignment, duplicated", "seconds ×"),
                  (("og-stp-layout", "0.05 (0.02–0.12)", "0.91", "1.00"), ("none", "0.93 (0.86–0.97)", "[bold]0.94", "1.00")),
                  note="n = 96.")


def shown(width):
    stream = io.StringIO()
    Console(file=stream, width=width).print(TABLE)
    return stream.getvalue()


def test_markdown_by_hand():
    assert TABLE.markdown().splitlines() == [
        "| method | copies | alignment, duplicated | seconds × |", "|---|---|---|---|",
        "| `og-stp-layout` | 0.05 (0.02–0.12) | 0.91 | 1.00 |", "| `none` | 0.93 (0.86–0.97) | [bold]0.94 | 1.00 |",
        "", "n = 96."]
    heads = TextTable(("copies", "none"), (("8", "75%"),), names="heads")
    assert heads.markdown().splitlines() == ["| copies | `none` |", "|---|---|", "| 8 | 75% |"]


@pytest.mark.parametrize("width", [200, 80, 60, 40])
def test_every_cell_is_there_and_no_line_is_wider(width):
    text = shown(width)
    assert all(cell in text for row in (TABLE.heads, *TABLE.rows) for cell in row)
    assert max(map(len, text.splitlines())) <= width
    assert "n = 96." in text


def test_columns_go_into_blocks_that_begin_with_the_first():
    rows = [("aaaa", "bb", "cccc", "d")]
    assert blocks_that_fit(rows, 80) == [[0, 1, 2, 3]]
    assert blocks_that_fit(rows, 14) == [[0, 1, 2], [0, 3]]  # 4 + 2 + 2 + 2 + 4 = 14
    assert blocks_that_fit(rows, 13) == [[0, 1], [0, 2, 3]]  # 4 + 2 + 4 + 2 + 1 = 13
    assert blocks_that_fit(rows, 1) == [[0, 1], [0, 2], [0, 3]]
