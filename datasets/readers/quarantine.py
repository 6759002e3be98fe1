"""What was left out of a data set, named: on stderr and in a table beside the output."""
import csv
from dataclasses import asdict

from rotescope.common.console import say

SHOWN = 20   # lines on a terminal; the file has all


def save_quarantined(quarantined, file):
    """-> CSV with the columns name, reason and group, the last what a plan has it for."""
    with open(file, "w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        rows = csv.DictWriter(stream, ["name", "reason", "group"])
        rows.writeheader()
        rows.writerows(asdict(q) for q in quarantined)


def show_quarantined(quarantined, file=None, unused=()):
    """The first of them and how many there are, on stderr; nothing if there are none.

    file: where all are listed, if anywhere; unused: a Source's sentences on other files, warnings but for notes.
    """
    for sentence in unused:
        say(sentence if sentence.startswith("note: ") else f"warning: {sentence}")
    if not quarantined:
        return
    more = [f"  … and {len(quarantined) - SHOWN} more"] if len(quarantined) > SHOWN else []
    are = "1 image is" if len(quarantined) == 1 else f"{len(quarantined)} images are"
    listed = f", all listed in {file}" if file else ""
    lines = [f"{are} left out{listed}:", *(f"  {' '.join(q.reason.split())}" for q in quarantined[:SHOWN]), *more]
    say("\n".join(lines))
