"""List every mitigation: what it costs and needs, its settings, its paper, and the families of models it serves.

    rotescope mitigations
    rotescope mitigations --model MODEL     # those that serve it
    rotescope mitigations --json

Take one with --mitigation NAME, or NAME:key=value,key=value for other settings than the authors'. Costs are
denoiser rows against plain guidance. Where no families are named, the tests run it on all of them.
"""
import json as as_json
import textwrap
from dataclasses import dataclass

from rotescope.common.console import say
from rotescope.common.errors import exit_cleanly
from rotescope.common.settings import parse
from rotescope.mitigate.contract.catalogue import EVERY, words_of
from rotescope.mitigate.contract.families import family_of_class, why_one_branch
from rotescope.mitigate.methods.registry import list_mitigations
from rotescope.models.model_files import read_index
from rotescope.models.single_files.checks import find_model_path
from rotescope.models.single_files.contents import describe_model

WIDTH = 80
OF_FILE = {"Stable Diffusion 1": "sd", "Stable Diffusion 2": "sd", "SDXL": "sdxl", "SD3": "sd3", "FLUX": "flux",
           "PixArt": "pixart"}


@dataclass(frozen=True)
class MitigationsConfig:
    """Of rotescope mitigations."""
    model: str | None = None
    """list what serves this model: a folder, a single file, or a name on the hub; nothing of it is loaded"""
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


def family_of_model(model):
    """A model as --model names it -> its pipeline's class, or what its file is; its family; and whether it is distilled."""
    path = find_model_path(model)
    if path.is_file():
        about = describe_model(path)
        return about.what, OF_FILE.get(about.family.name, "other"), False
    index = read_index(path)
    return index["_class_name"], family_of_class(index["_class_name"]), index.get("is_distilled", False)


def serving(entries, kind, distilled):
    """Those of the entries that serve a family; where it computes one branch, plain guidance alone."""
    if why_one_branch(kind, distilled):
        return [entry for entry in entries if entry.name == "none"]
    return [entry for entry in entries if kind in entry.families]


def model_line(model, what, kind, distilled, n, of):
    """What a model is, and how many mitigations serve it."""
    why = why_one_branch(kind, distilled)
    known = "" if kind == "other" else f" ({kind})"
    return f"{model} is a {what}{known}: " + (f"it takes no mitigation, for {why}." if why else f"{n} of {of} serve it.")


@exit_cleanly
def main(argv=None):
    config = parse(MitigationsConfig, argv, prog="rotescope mitigations", description=__doc__)
    entries = every = list_mitigations()
    if config.model is not None:
        what, kind, distilled = family_of_model(config.model)
        entries = serving(every, kind, distilled)
        say(model_line(config.model, what, kind, distilled, len(entries), len(every)))
    if config.json:
        print(as_json.dumps([entry.as_json() for entry in entries], indent=2, ensure_ascii=False))
    else:
        print(as_table(entries))


if __name__ == "__main__":
    main()
