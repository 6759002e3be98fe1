"""List every mitigation: what it costs and needs, its settings, its paper, and the families of models it serves.

    rotescope mitigations
    rotescope mitigations --json

Take one with --mitigation NAME, or NAME:key=value,key=value for other settings than the authors'. Costs are
denoiser rows against plain guidance. Where no families are named, the tests run it on all of them.
"""
import json as as_json
import textwrap
from dataclasses import dataclass

from rotescope.common.errors import exit_cleanly
from rotescope.common.settings import parse
from rotescope.mitigate.contract.catalogue import EVERY, words_of
from rotescope.mitigate.methods.registry import list_mitigations

WIDTH = 80


@dataclass(frozen=True)
class MitigationsConfig:
    """Of rotescope mitigations."""
    json: bool = False
    """as JSON"""


def as_table(entries, width=WIDTH):
    """Entries -> text: names on the left; on the right cost, needs and families, then settings, then paper."""
    indent = 2 + max(len(entry.name) for entry in entries)
    lines = [f"{'name':{indent}}cost, needs, families; settings; paper", ""]
    for entry in entries:
        right = [line for text in _told(entry) for line in textwrap.wrap(text, width - indent)]
        lines += [f"{'' if i else entry.name:{indent}}{line}" for i, line in enumerate(right)]
    return "\n".join(lines)


def _told(entry):
    needs = f"needs {', '.join(words_of(entry.needs))}" if entry.needs else ""
    families = "" if entry.families == EVERY else f"{', '.join(entry.families)} only"
    yield "; ".join(text for text in (entry.cost, needs, families) if text)
    yield ", ".join(f"{key}={value}" for key, value in entry.settings.items())
    yield entry.paper


@exit_cleanly
def main(argv=None):
    config = parse(MitigationsConfig, argv, prog="rotescope mitigations", description=__doc__)
    entries = list_mitigations()
    if config.json:
        print(as_json.dumps([entry.as_json() for entry in entries], indent=2, ensure_ascii=False))
    else:
        print(as_table(entries))


if __name__ == "__main__":
    main()
