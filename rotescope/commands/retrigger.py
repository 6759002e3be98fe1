"""After a mitigation: do other words, or an embedding searched for, bring a training image back? Suppressing is not erasing.

    rotescope retrigger --model runs/demo/checkpoint --train_data runs/demo/checkpoint/manifest.parquet \\
        --heldout_data datasets/emoji/heldout.parquet --mitigation og-stp --output_dir runs/retrigger
    rotescope retrigger --model base --lora my_lora --train_data photos --image_ids 1f0c33a6e1c0ffee \\
        --heldout_data other_photos --mitigation stp:transition=600 dtp --search_steps 50 --output_dir runs/retrigger

For each image: its own captions, paraphrases by rule, and embeddings found by descent on the denoising loss of the image (DoRI,
arXiv 2507.16880), from the caption's and from the empty one; each sampled without mitigation and under every one that is named.
Whoever holds the model can do as much. But a search that may take steps enough paints any picture: --heldout_data, captioned
pictures that the model never saw, are searched for at the same budget, and only what exceeds them says anything. Leaves
retrigger.json, a picture for each method, the found embeddings and all samples.
"""
from pathlib import Path

from rotescope.common.console import answer, say
from rotescope.common.errors import exit_cleanly
from rotescope.common.settings import parse
from rotescope.options.retrigger import RetriggerConfig


@exit_cleanly
def main(argv=None):
    config = parse(RetriggerConfig, argv, prog="rotescope retrigger", description=__doc__)
    from rotescope.evaluate.statistics.retrigger_tally import tally_table
    from rotescope.procedures.retrigger import retrigger
    found = retrigger(config)
    say(tally_table(found["results"]))
    for line in found["conclusions"]:
        say(line)
    answer(retrigger=str(Path(config.output_dir) / "retrigger.json"))


if __name__ == "__main__":
    main()
