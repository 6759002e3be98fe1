"""Score prompts by how memorized they are, before any image is compared with the training images.

    rotescope detect --model runs/demo/checkpoint --prompts runs/demo/checkpoint/manifest.parquet --output_dir runs/detect
    rotescope detect --prompts prompts.txt --detector magnitude:n=1,steps=5 sail edges --tokens --output_dir runs/detect
    rotescope detect --model runs/demo/checkpoint --prompts runs/demo/checkpoint/manifest.parquet --detector recall --output_dir d
    rotescope detect --model m --prompts m/manifest.parquet --heldout_data other-photos --detector all recall:n=1 --output_dir d

Detectors: magnitude, layout, drop, anisotropy, sail, bright-ending, entropy-d, entropy-e, confidence (these look inside), edges,
cliques (these need images only), recall (this needs the training images, too, which a manifest names); all, for every one that
can be asked of this model. Each may carry settings, n (seeds a prompt) among them. Writes scores.parquet, one row a prompt and
detector, higher = more memorized, and under --tokens the words that trigger, tokens.parquet. Where the prompts have groups, as
those of a manifest with a duplication plan have, detection.json and the table detection.md say how well each detector tells
duplicated prompts from the others; --heldout_data adds captions that the model never saw to these.
"""
from pathlib import Path

from rotescope.common.console import answer, say
from rotescope.common.errors import exit_cleanly
from rotescope.common.settings import parse
from rotescope.mitigate.detectors.options import DetectConfig


@exit_cleanly
def main(argv=None):
    config = parse(DetectConfig, argv, prog="rotescope detect", description=__doc__)
    from rotescope.procedures.detect import FILE, run_detection
    _, table = run_detection(config)
    if table:
        say(table)
    out = Path(config.output_dir)
    answer(scores=str(out / "scores.parquet"), table=str(out / FILE) if table else None)


if __name__ == "__main__":
    main()
