"""Sample prompts × seeds × mitigations into a folder of images and records.

    rotescope generate --model runs/demo/checkpoint --prompts prompts.txt --mitigation none og-stp --output_dir runs/samples
    rotescope generate --prompts prompts.txt --mitigation stp:transition=600 --seeds 0 1 --output_dir runs/stp-600

On several GPUs or nodes:

    accelerate launch mitigate/generate.py --prompts prompts.txt --output_dir runs/samples --resume

--prompts takes a .txt file (one a line), a .csv, .jsonl or .parquet with a `prompt` or `caption`, or the
manifest.parquet that a fine-tune leaves beside its checkpoint: then the duplicated and the control captions are
sampled. A run that was stopped stays beside output_dir and goes on under --resume. Several processes share the work,
on one file system, and make the images that one would make. The last line says of how many images each mitigation changed
anything.
"""
import json

from rotescope.common.console import answer
from rotescope.common.errors import exit_cleanly
from rotescope.common.processes import is_first_process
from rotescope.common.settings import parse
from rotescope.mitigate.sampling.options import GenerateConfig


@exit_cleanly
def main(argv=None):
    config = parse(GenerateConfig, argv, prog="rotescope generate", description=__doc__)
    from rotescope.mitigate.sampling.generation import generate_to_folder
    samples = generate_to_folder(config)
    if is_first_process():
        answer(samples=str(samples), active=json.loads((samples / "run.json").read_text(encoding="utf-8")).get("active"))


if __name__ == "__main__":
    main()
