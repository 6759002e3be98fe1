"""Does the default threshold tell planted duplicates from controls, seed after seed, and clear the base model?

    python benchmarks/planted.py --output_dir runs/planted                # three fine-tunings of the embedded model
    python benchmarks/planted.py --train_seeds 0 --output_dir runs/planted-0

For each seed the embedded model is fine-tuned by the demo's recipe, and the duplicated and the control captions are sampled from
it and, on the same noise, from the base model. A training image is flagged if a leaking prompt copies it, as an audit says by
default, whosever caption that is. Asked: is every image with --least copies or more flagged, no control, and none by the base
model? Exit code 1 if not. Writes planted.json and each seed's checkpoint and samples.
"""
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from rotescope.common.errors import exit_cleanly
from rotescope.common.outputs import output_folder, versions, write_json
from rotescope.common.progress import progress_bars
from rotescope.common.settings import parse, plain
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.measurement.findings import score_samples
from rotescope.mitigate.methods.transition import PLAIN
from rotescope.mitigate.sampling.options import check_sampling
from rotescope.mitigate.sampling.sampler import sample_to_folder
from rotescope.models.model_options import BASE
from rotescope.models.pipelines import load_pipeline
from rotescope.procedures.checkpoint_prompts import dosed_prompts
from rotescope.procedures.finetune import run_finetune
from rotescope.train.options.finetune_options import EMBEDDED, RECIPE, FinetuneConfig


@dataclass(frozen=True)
class PlantedConfig:
    output_dir: str = "runs/planted"
    """planted.json, checkpoints and samples go here"""
    train_seeds: tuple[int, ...] = (0, 1, 2)
    """one fine-tuning each"""
    least: int = 64
    """copies an epoch from which on a duplicate must be flagged"""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """one image a caption and a seed"""
    max_train_steps: int | None = None
    """fine-tuning steps, if not the recipe's"""
    guidance_scale: float = 7.5
    """as an audit has it"""
    num_inference_steps: int = 25
    """denoising steps"""
    batch_size: int = 64
    """images at a time"""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """where the model runs"""
    overwrite: bool = False
    """replace output_dir"""


def flagged(report):
    """-> ids of training images that leaking prompts copy."""
    leaking = {p.prompt_index for p in report.prompts if p.leaked}
    return {p.nearest for p in report.pairs if p.is_copy and p.prompt_index in leaking}


def counts(ids, manifest, least):
    """-> {"planted": [flagged, all], "control": [flagged, all]}."""
    sets = {"planted": {e.image_id for e in manifest if e.group == "duplicated" and e.copies >= least},
            "control": {e.image_id for e in manifest if e.group == "control"}}
    return {name: [len(members & ids), len(members)] for name, members in sets.items()}


def sampled(model, prompts, config, folder, name):
    pipe = load_pipeline(model).to(config.device)
    with progress_bars({name: len(prompts) * len(config.seeds)}) as advance:
        sample_to_folder(pipe, prompts, {"none": PLAIN}, config.seeds, folder, on_sample=lambda _: advance(name),
                         about={"model": str(model)}, batch_size=config.batch_size, guidance_scale=config.guidance_scale,
                         num_inference_steps=config.num_inference_steps)
    return folder


def one_seed(config, seed, folder, heldout):
    """Fine-tune, sample, score -> {seed, held, threshold, descriptor, finetuned: counts, base: counts}."""
    recipe = parse(FinetuneConfig, [], prog="finetune", description="", config=RECIPE)
    run_finetune(replace(recipe, output_dir=str(folder / "checkpoint"), seed=seed,
                     max_train_steps=config.max_train_steps or recipe.max_train_steps,
                     partial_plan=bool(config.max_train_steps)))
    manifest, groups = dosed_prompts(folder / "checkpoint")
    prompts = [p for group in groups.values() for p in group]
    found = {}
    for name, model in (("finetuned", folder / "checkpoint"), ("base", BASE)):
        samples = sampled(model, prompts, config, folder / name, f"{name}, seed {seed}")
        report = score_samples(samples, manifest, heldout, verify=False, alignment="none")
        found[name] = counts(flagged(report), manifest, config.least)
    (planted, all_planted), (controls, _) = found["finetuned"].values()
    clear = not any(n for n, _ in found["base"].values())
    return {"seed": seed, "held": planted == all_planted > 0 and not controls and clear, **found,
            **{k: getattr(report, k) for k in ("copy_threshold", "threshold_rule", "descriptor")}}


def measure(config):
    check_sampling(config)
    heldout = load_source(Path(EMBEDDED["train_data"]).with_name("heldout.parquet"))
    with output_folder(config.output_dir, config.overwrite, min_free_mb=200) as draft:
        rows = []
        for seed in config.train_seeds:
            folder = draft / f"seed-{seed}"
            folder.mkdir()
            rows.append(one_seed(config, seed, folder, heldout))
        write_json(draft / "planted.json", {"config": plain(config), "versions": versions(), "rows": rows})
    return rows


def table(rows):
    shown = Table("seed", "planted flagged", "controls flagged", "base: planted", "base: controls", "threshold", "held")
    for r in rows:
        cells = [f"{n} of {of}" for which in ("finetuned", "base") for n, of in r[which].values()]
        shown.add_row(str(r["seed"]), *cells, f"{r['copy_threshold']:.4f}", "yes" if r["held"] else "no")
    return shown


@exit_cleanly
def main(argv=None):
    config = parse(PlantedConfig, sys.argv[1:] if argv is None else argv, prog="planted.py", description=__doc__)
    rows = measure(config)
    Console(stderr=True).print(table(rows))
    print(json.dumps(rows))
    if not all(r["held"] for r in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
