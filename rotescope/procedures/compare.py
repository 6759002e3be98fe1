"""Every mitigation on one fine-tuned model, side by side: what it removes, and at what price."""
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rotescope.common.errors import InputError
from rotescope.common.outputs import check_apart, check_output, output_folder, versions, write_json
from rotescope.common.progress import progress_bars
from rotescope.common.settings import plain
from rotescope.common.text_table import TextTable
from rotescope.common.whole_files import write_text
from rotescope.evaluate.inputs.output_checks import samples_kept
from rotescope.evaluate.measurement.findings import score_samples, totals
from rotescope.evaluate.report.json_types import as_json
from rotescope.evaluate.report.terminal import number
from rotescope.evaluate.statistics.clusters import INTERVALS
from rotescope.mitigate.adapters.effects import without_mitigation_warnings
from rotescope.mitigate.contract.catalogue import Need
from rotescope.mitigate.contract.families import family, two_branch_scale
from rotescope.mitigate.methods.calibrated_transition import Calibration
from rotescope.mitigate.methods.registry import ENTRIES, with_training
from rotescope.mitigate.methods.transition import PLAIN
from rotescope.mitigate.methods.value_neurons import NO_THETA
from rotescope.mitigate.prompts.prompt import Prompt
from rotescope.mitigate.sampling.calibration import first_gaps
from rotescope.mitigate.sampling.options import check_sampling, named_policies
from rotescope.mitigate.sampling.sampler import sample, sample_to_folder
from rotescope.models.memory import check_memory
from rotescope.models.pipelines import chosen_device, open_checkpoint
from rotescope.procedures.checkpoint_prompts import dosed_prompts, going_on_with, heldout_of, provenance
from rotescope.procedures.plots.pareto import draw_pareto

WATCH = 3    # first steps at which dtp-calibrated looks
COLUMNS = {  # heading -> where it comes from
    "copies, duplicated": lambda r: f"{r['groups']['duplicated']['copy_rate']:.2f} ({_interval(r['groups']['duplicated'])})",
    "Sim95": lambda r: f"{r['groups']['duplicated']['sim95']:.2f}",
    "alignment, duplicated": lambda r: number(r["groups"]["duplicated"]["alignment"], 2),
    "alignment, controls": lambda r: number(r["groups"]["control"]["alignment"], 2),
    "KID, controls": lambda r: f"{r['groups']['control']['fidelity']['kid']:.2f}" if r["groups"]["control"]["fidelity"] else "–",
    "rows": lambda r: f"{r['groups']['duplicated']['denoiser_rows']:.0f}",
    "seconds ×": lambda r: f"{r['cost']['seconds_ratio']:.2f}",
    "peak MB": lambda r: f"{r['cost']['peak_mb']:.0f}",
    "front": lambda r: "yes" if r["front"] else "",
}


def pareto(points):
    """(copy rate, alignment) of each -> bool each: no other is better in one and not worse in the other."""
    points = np.asarray(points, np.float64)
    cost = np.stack([points[:, 0], -points[:, 1]], 1)
    return [not any((other <= mine).all() and (other < mine).any() for other in cost) for mine in cost]


def cost_of(pipe, prompts, mitigation, config):
    """-> seconds relative to plain guidance, its range, and the peak memory in MB, on one batch of prompts."""
    def run(policy):
        started = time.perf_counter()
        with without_mitigation_warnings():
            list(sample(pipe, prompts, policy, config.seeds[:1], guidance_scale=config.guidance_scale,
                        num_inference_steps=config.num_inference_steps, batch_size=config.batch_size))
        return time.perf_counter() - started

    ratios, peaks = [], []
    for _ in range(config.repeats):
        plain_seconds = run(PLAIN)
        _reset_peak(pipe._execution_device)
        ratios.append(run(mitigation) / plain_seconds)
        peaks.append(_peak_mb(pipe._execution_device))
    return {"seconds_ratio": float(np.median(ratios)), "seconds_ratio_range": [min(ratios), max(ratios)],
            "repeats": config.repeats, "batch": min(config.batch_size, len(prompts)), "peak_mb": max(peaks)}


def _reset_peak(device):
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size


def _peak_mb(device):
    """Of the GPU's memory, or of the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def run_comparison(config):
    """Sample, time and score every method -> {method: {duplicated, control, cost, front}}."""
    check_output(config.output_dir, config.overwrite, min_free_mb=200,
                 inputs=(config.checkpoint, config.heldout_data), texts=config.mitigation)
    check_sampling(config)
    check_memory(config, chosen_device(config.device), config.checkpoint)
    if config.repeats < 1:
        raise InputError(f"repeats={config.repeats}: time each method once or more")
    manifest, groups = dosed_prompts(config.checkpoint)
    prompts = [p for group in groups.values() for p in group]
    heldout = heldout_of(config.heldout_data, manifest)
    check_apart(config.output_dir, {e.file for e in (*manifest, *(heldout or ()))})
    pipe = open_checkpoint(config, config.checkpoint)
    config = replace(config, guidance_scale=two_branch_scale(pipe, config.guidance_scale))
    with output_folder(config.output_dir, config.overwrite) as draft, samples_kept(draft, going_on_with(config)):
        methods = named_policies(config.mitigation, own_manifest(config)) if config.mitigation else \
            _every(config, pipe, manifest, heldout, draft)
        costs = _sample_all(config, pipe, prompts, methods, draft / "samples")
        with progress_bars(totals(draft / "samples", manifest, heldout)) as on_image:
            report = score_samples(draft / "samples", manifest, heldout, on_image=on_image)
        rows = _rows(report, costs)
        draw_pareto(rows, draft / "pareto.png")
        (draft / "table.md").write_text(comparison_table(rows, report).markdown(), encoding="utf-8")
        kept = ("descriptor", "copy_threshold", "threshold_rule", "alignment_metric", "fidelity_metric", "seeds", "hashes")
        about = {key: as_json(getattr(report, key)) for key in kept}
        write_json(draft / "compare.json", {"methods": rows, **about, "config": plain(config), "versions": versions()})
    return rows, report


def own_manifest(config):
    """The training images for mitigations that need some: the checkpoint's own."""
    return Path(config.checkpoint) / "manifest.parquet"


def _every(config, pipe, manifest, heldout, folder):
    """Whatever serves the model -> {name: mitigation}. nemo and dtp-calibrated get held-out captions that no training image
    bears, the latter a calibration on them, where there are eight or more."""
    kind = family(pipe)
    named: dict[str, Any] = {n: with_training(n, own_manifest(config)) for n, e in ENTRIES.items()
                             if kind in e.families and (e.ready or Need.TRAINING_IMAGES in e.needs)}
    ordinary = {c for e in heldout or () for c in e.captions} - set(manifest.captions())
    if kind in ENTRIES["nemo"].families:
        write_text(folder / "ordinary.txt", "\n".join(sorted(ordinary)))
        named["nemo"] = ENTRIES["nemo"].make(ordinary=str(folder / "ordinary.txt") if len(ordinary) >= 8 else NO_THETA)
    if kind in ENTRIES["dtp-calibrated"].families and len(ordinary) >= 8:
        sampling = {"guidance_scale": config.guidance_scale, "num_inference_steps": config.num_inference_steps}
        prompts = [Prompt(c) for c in sorted(ordinary)[:100]]
        gaps, timesteps = first_gaps(pipe, prompts, range(1000, 1004), watch=WATCH, **sampling)
        write_json(folder / "calibration.json", Calibration.of(gaps, timesteps, *sampling.values()).as_json())
        named["dtp-calibrated"] = ENTRIES["dtp-calibrated"].make(calibration=str(folder / "calibration.json"))
    return {"none": PLAIN, **named}


def _sample_all(config, pipe, prompts, methods, folder):
    bars = {"timing": len(methods), **{name: len(prompts) * len(config.seeds) for name in methods}}
    with progress_bars(bars) as advance:
        costs = {}
        for name, mitigation in methods.items():
            costs[name] = cost_of(pipe, prompts[:config.batch_size], mitigation, config)
            advance("timing", name)
        sample_to_folder(pipe, prompts, methods, config.seeds, folder, about=provenance(config), on_sample=advance,
                         guidance_scale=config.guidance_scale, num_inference_steps=config.num_inference_steps,
                         batch_size=config.batch_size)
    return costs


def _rows(report, costs):
    rows = {name: {"groups": as_json(found.groups), "cost": costs[name]} for name, found in report.methods.items()}
    front = pareto([(r["groups"]["duplicated"]["copy_rate"], r["groups"]["duplicated"]["alignment"] or 0) for r in rows.values()])
    return {name: row | {"front": on} for (name, row), on in zip(rows.items(), front, strict=True)}


def _interval(cell):
    return "–".join(f"{v:.2f}" for v in cell["copy_rate_interval"])


def comparison_table(rows, report):
    """The table, with what its numbers mean under it -> TextTable."""
    n = {group: "{n} images of {n_prompts}".format(**next(iter(rows.values()))["groups"][group])
         for group in ("duplicated", "control")}
    return TextTable(
        ("mitigation", *COLUMNS),
        tuple((name, *(write(row) for write in COLUMNS.values())) for name, row in rows.items()),
        f"{n['duplicated']} duplicated captions and {n['control']} controls a row; copies by "
        f"{report.descriptor} at {report.copy_threshold:.3f} ({report.threshold_rule}); {INTERVALS}; "
        f"alignment by the {report.alignment_metric or 'metric that this model lacks'}; "
        "front: no other row has fewer copies at no less alignment.")
