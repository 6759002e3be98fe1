"""The whole job on what ships: fine-tune the embedded model on duplicated images, sample, retrieve, report."""
import time
from dataclasses import replace
from pathlib import Path

from rotescope.common.console import say
from rotescope.common.outputs import check_output
from rotescope.common.processes import alone_in
from rotescope.common.progress import progress_bars
from rotescope.common.settings import parse, plain
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.measurement.findings import score_samples, totals
from rotescope.evaluate.report.html import write_report
from rotescope.evaluate.report.terminal import print_table
from rotescope.mitigate.sampling.generation import generate_to_folder
from rotescope.mitigate.sampling.options import GenerateConfig, check_sampling, named_policies
from rotescope.models.model_options import BASE
from rotescope.procedures.finetune import run_finetune
from rotescope.train.options.finetune_options import EMBEDDED, RECIPE, FinetuneConfig

SWEEP = tuple(f"{name}:transition={t}" for name in ("stp", "og-stp") for t in (800, 700, 600, 500))
TITLE = "What did the embedded model learn by rote?"


def demo(config):
    """-> the report, whose folder is config.output_dir."""
    check_output(config.output_dir, config.overwrite, min_free_mb=200)
    with alone_in(config.output_dir):
        return _demo(config)


def _demo(config):
    out, started = Path(config.output_dir), time.time()
    checkpoint = out / "checkpoint"
    sampling = GenerateConfig(prompts=str(checkpoint / "manifest.parquet"), output_dir=str(out / "samples"),
                              model=str(checkpoint), mitigation=config.mitigation, seeds=config.seeds,
                              overwrite=config.overwrite, num_inference_steps=config.num_inference_steps)
    check_sampling(sampling)
    named_policies(config.mitigation)
    _say(1, "fine-tune the embedded model on data in which some images are duplicated")
    recipe = parse(FinetuneConfig, [], prog="finetune", description="", config=RECIPE)
    recipe = replace(recipe, output_dir=str(checkpoint), overwrite=config.overwrite, seed=config.seed,
                     max_train_steps=config.max_train_steps or recipe.max_train_steps,
                     partial_plan=bool(config.max_train_steps))
    run_finetune(recipe)
    _say(2, "sample the duplicated captions and untouched controls, plainly and under each method")
    samples = generate_to_folder(sampling)
    sweep = None
    if config.sweep:
        _say(3, "sweep the transition timestep of delayed and of opposite guidance")
        half = config.seeds[:max(1, len(config.seeds) // 2)]
        sweep = generate_to_folder(replace(sampling, output_dir=str(out / "sweep"), mitigation=SWEEP,
                                           groups=("duplicated",), seeds=half))
    _say(4, "retrieve each image's nearest training images")
    manifest = load_source(checkpoint / "manifest.parquet")
    heldout = load_source(Path(EMBEDDED["train_data"]).with_name("heldout.parquet"))
    with progress_bars(totals(samples, manifest, heldout, sweep)) as on_image:
        report = score_samples(samples, manifest, heldout, alignment=str(BASE / "alignment"), sweep=sweep, config=plain(config),
                               title=TITLE, on_image=on_image)
    file = write_report(report, out)
    print_table(report)
    say(f"\n{time.time() - started:.0f} s; the report is {file}")
    return report


def _say(number, what):
    say(f"{number}/4 {what}", style="bold")
