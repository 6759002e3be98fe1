"""Audit a checkpoint against its training images: sample its captions, look for copies, report, pass or fail.

    rotescope audit --model runs/demo/checkpoint --train_data runs/demo/checkpoint/manifest.parquet --output_dir runs/audit
    rotescope audit --model base --lora my_lora --train_data photos --mitigation og-stp --fail_on "copies>0" --output_dir runs/a

Exit code 0: passed, or no rule was given; 1: the rule of --fail_on is broken; 2: wrong input; 3: the run failed. Where the data
have a duplication plan, its duplicated and control captions are sampled; else every training image's first caption.
"""
import sys
from dataclasses import dataclass, fields

import torch

from rotescope.datasets.sources import load_source
from rotescope.errors import exit_cleanly
from rotescope.evaluate.alignment import find_alignment, get_alignment
from rotescope.evaluate.descriptors import get_descriptor
from rotescope.evaluate.options import MeasureConfig
from rotescope.evaluate.report import write_report
from rotescope.evaluate.score import score_samples, show_and_judge, totals
from rotescope.evaluate.verdict import DEFAULT_RULE, Rule, check_power
from rotescope.mitigate.generate import GenerateConfig, check, sample_with
from rotescope.mitigate.prompts import prompts_of
from rotescope.models import load_pipeline
from rotescope.progress import progress_bars
from rotescope.runs import output_folder
from rotescope.settings import parse, plain


@dataclass(frozen=True, kw_only=True)
class AuditConfig(MeasureConfig):
    model: str
    """model folder in diffusers' layout, or its name on the hub"""
    lora: str | None = None
    """LoRA file or folder, on top of the model"""
    mitigation: tuple[str, ...] = ("none",)
    """one or several of none, stp, og-stp, dtp, og-dtp, each perhaps with settings: og-stp:before=-3,transition=700"""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """one image a prompt and a seed"""
    max_prompts: int | None = None
    """sample only so many captions of each group"""
    guidance_scale: float = 7.5
    """after the transition; 1 is off, as in diffusers"""
    num_inference_steps: int = 50
    """of the pipeline's own scheduler"""
    batch_size: int = 64
    """images at a time"""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """where the model runs"""


def audit(config):
    """Audit as `config` says -> Report. Whatever can be wrong with the input is found before the model is loaded."""
    policies, rule = check(_generate_config(config)), Rule.parse(config.fail_on or DEFAULT_RULE)
    alignment = find_alignment(config.model) if config.alignment == "auto" else config.alignment
    get_alignment(alignment)
    get_descriptor(config.descriptor)
    manifest = load_source(config.train_data)
    heldout = load_source(config.heldout_data, need_captions=False) if config.heldout_data else None
    prompts = prompts_of(manifest, limit=config.max_prompts)
    if config.fail_on:
        sizes = {(m, p.group): len(config.seeds) * sum(q.group == p.group for q in prompts) for m in policies for p in prompts}
        check_power(rule, sizes)
    with output_folder(config.output_dir, config.overwrite) as draft:
        (draft / "samples").mkdir()
        sample_with(config, load_pipeline(config.model, config.lora).to(config.device), prompts, policies, draft / "samples")
        with progress_bars(totals(draft / "samples", manifest, heldout)) as on_image:
            report = score_samples(
                draft / "samples", manifest, heldout, config.descriptor, alignment, config=plain(config), title=config.title,
                rule=rule, copy_quantile=config.copy_quantile, copy_threshold=config.copy_threshold, on_image=on_image)
        write_report(report, draft)
    return report


def _generate_config(config):
    shared = {f.name for f in fields(GenerateConfig)} & {f.name for f in fields(AuditConfig)}
    return GenerateConfig(prompts=config.train_data, **{key: getattr(config, key) for key in shared})


@exit_cleanly
def main(argv=None):
    config = parse(AuditConfig, sys.argv[1:] if argv is None else argv, prog="rotescope audit", description=__doc__)
    show_and_judge(audit(config), config.output_dir, config.fail_on)


if __name__ == "__main__":
    main()
