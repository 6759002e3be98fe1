"""List every mitigation: its settings, its paper, what it costs and needs, and the model families that the tests run it on.

    rotescope mitigations
    rotescope mitigations --json

Take one with --mitigation NAME, or NAME:key=value,key=value for other settings than the authors'.
"""
import json as as_json
import sys
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from rotescope.common.errors import exit_cleanly
from rotescope.common.settings import parse
from rotescope.mitigate.methods.registry import ENTRIES


@dataclass(frozen=True)
class MitigationsConfig:
    json: bool = False
    """as JSON, settings included"""


def rows():
    """-> one dict a mitigation."""
    return [{"name": name, "settings": asdict(e.preset), "paper": e.paper, "cost": e.cost, "needs": e.needs,
             "families": list(e.families)} for name, e in ENTRIES.items()]


def table():
    found = Table("name", "settings", "paper", "cost", "needs", "families", box=None, pad_edge=False)
    for row in rows():
        settings = ", ".join(f"{k}={v}" for k, v in row["settings"].items())
        found.add_row(row["name"], settings, row["paper"], row["cost"], row["needs"], " ".join(row["families"]))
    return found


@exit_cleanly
def main(argv=None):
    config = parse(MitigationsConfig, sys.argv[1:] if argv is None else argv, prog="rotescope mitigations", description=__doc__)
    if config.json:
        print(as_json.dumps(rows(), indent=2, ensure_ascii=False))
    else:
        Console(width=None if sys.stdout.isatty() else 200).print(table())


if __name__ == "__main__":
    main()
