"""A page of docs/ that a script writes: writing it, or checking that it is what the script would write."""
import sys
from pathlib import Path


def write_or_check(page: Path, text: str, written_by: str, source: str, argv: list[str] | None = None) -> int:
    """The end of a script that makes `page` -> its exit code: with --check 1 where the page is another, else it is written.

    written_by: the script's path, beside the page. source: what the page is made from, with its verb: "the docstrings say".
    """
    if "--check" not in (sys.argv[1:] if argv is None else argv):
        page.write_text(text, encoding="utf-8")
        return 0
    stale = not page.is_file() or page.read_text(encoding="utf-8") != text
    if stale:
        print(f"docs/{page.name} is not what {source}: run python docs/{Path(written_by).name}", file=sys.stderr)
    return int(stale)
