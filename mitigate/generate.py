"""Sample prompts × seeds × mitigations into a folder of images and records.

    rotescope generate --model runs/demo/checkpoint --prompts prompts.txt --mitigation none og-stp --output_dir runs/samples
    rotescope generate --prompts prompts.txt --mitigation stp:transition=600 --seeds 0 1 --output_dir runs/stp-600

    accelerate launch mitigate/generate.py --prompts prompts.txt --output_dir runs/samples --resume      # several GPUs or nodes

--prompts takes a .txt file (one a line), a .csv, .jsonl or .parquet with a `prompt` or `caption`, or the manifest.parquet that a
fine-tune leaves beside its checkpoint: then the duplicated and the control captions are sampled.
A run that was stopped stays beside output_dir and goes on under --resume. Several processes share the work, on one file system,
and make the images that one would make.
"""
import json
import sys
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from rotescope.common.errors import exit_cleanly
from rotescope.common.models import check_model, chosen_device, open_model
from rotescope.common.outputs import check_output
from rotescope.common.settings import parse
from rotescope.mitigate.prompts.prompt import load_prompts
from rotescope.mitigate.sampling.options import SamplingOptions, check_sampling, named_policies
from rotescope.mitigate.sampling.resumable_folder import check_same, is_finished, resumable_folder
from rotescope.mitigate.sampling.run_description import describe, sample_described


@dataclass(frozen=True)
class GenerateConfig(SamplingOptions):
    prompts: str
    """file of prompts, or a checkpoint's manifest.parquet"""
    output_dir: str
    """where images, records.parquet and run.json go"""
    mitigation: tuple[str, ...] = ("none",)
    """one or several of what rotescope mitigations lists, each perhaps with settings: og-stp:before=-3,transition=700"""
    groups: tuple[str, ...] = ("duplicated", "control")
    """which prompts of a manifest that has a duplication plan"""
    max_prompts: int | None = None
    """take only so many prompts of each group"""
    overwrite: bool = False
    """replace output_dir"""
    resume: bool = False
    """go on with the run that was stopped, or start it; the settings must be the same"""


def check(config):
    """Raise InputError for whatever would stop the run later -> {name: policy}."""
    if not (config.resume and is_finished(config.output_dir)):
        check_output(config.output_dir, config.overwrite,
                     inputs=(config.model, config.lora, config.prompts, *config.mitigation))
    check_model(config)
    check_sampling(config)
    return named_policies(config.mitigation)


def generate(config):
    """Sample as `config` says -> the samples folder. Under `accelerate launch` every process calls it."""
    policies = check(config)
    prompts = load_prompts(config.prompts, config.groups, config.max_prompts)
    device = chosen_device(config.device)
    state = PartialState(cpu=device == "cpu", timeout=timedelta(days=1))  # the fastest process may wait long
    about = describe(config, prompts, policies) if state.is_main_process else {}
    if config.resume and is_finished(config.output_dir):
        if state.is_main_process:
            check_same(Path(config.output_dir), about)
        return Path(config.output_dir)
    pipe = open_model(replace(config, device=str(state.device)) if device == "cuda" else config)
    with resumable_folder(config.output_dir, about, state, overwrite=config.overwrite, resume=config.resume) as draft:
        sample_described(config, pipe, prompts, policies, draft, about, state)
    return Path(config.output_dir)


@exit_cleanly
def main(argv=None):
    config = parse(GenerateConfig, sys.argv[1:] if argv is None else argv, prog="rotescope generate", description=__doc__)
    samples = generate(config)
    if PartialState().is_main_process:
        print(json.dumps({"samples": str(samples)}))


if __name__ == "__main__":
    main()
