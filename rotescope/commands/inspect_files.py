"""Say what files and folders are: models, LoRAs, embeddings, training data. Nothing is loaded, changed or downloaded.

    rotescope inspect my_lora.safetensors
    rotescope inspect base.safetensors my_lora.safetensors img/
    rotescope inspect concepts.json --allow_outside_paths --json

Up to three lines for each, and for a LoRA beside training data whether its header agrees with them: how many pictures, and how
often an epoch shows them.
"""
import json
import sys

from rotescope.common.errors import InputError, exit_cleanly
from rotescope.common.settings import parse
from rotescope.options.inspect import InspectConfig


@exit_cleanly
def main(argv=None):
    config = parse(InspectConfig, _named(sys.argv[1:] if argv is None else argv), prog="rotescope inspect", description=__doc__)
    from rotescope.procedures.understanding import agreement_lines, as_plain, describe_path
    if not config.paths:
        raise InputError("name a file or a folder: rotescope inspect my_lora.safetensors")
    found = [describe_path(path, config) for path in config.paths]
    if config.json:
        told = {"found": list(map(as_plain, found)), "agreement": agreement_lines(found)}
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return
    for line in (*(line for description in found for line in description.lines()), *agreement_lines(found)):
        print(line)


def _named(argv):
    """Words before the first option are the paths."""
    first = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    return [*(["--paths", *argv[:first]] if first else []), *argv[first:]]


if __name__ == "__main__":
    main()
