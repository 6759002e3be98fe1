"""How many leaks a sampling plan finds for its images, against sampling every prompt alike.

    python benchmarks/sampling_plan.py --checkpoint runs/demo/checkpoint --output_dir runs/plan
    python benchmarks/sampling_plan.py --checkpoint runs/demo/checkpoint --samples runs/plan/samples --output_dir runs/plan2

The checkpoint is one that was fine-tuned with duplicated images, so that the leaks are known. Every prompt is sampled once with
every seed; each plan is then replayed over these same images at every budget, the price of its scores included. A leak is found
once an image copies the duplicated training image of its own caption. Writes curve.png, plan.json and samples/.
"""
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from rotescope.common.errors import InputError, exit_cleanly
from rotescope.common.outputs import output_folder, versions, write_json
from rotescope.common.progress import progress_bars
from rotescope.common.settings import parse, plain
from rotescope.evaluate.inputs.samples import open_image
from rotescope.evaluate.measurement.findings import score_samples, totals
from rotescope.mitigate.budget.allocation import ranked, uniform
from rotescope.mitigate.budget.budgeted_sampling import pair_agreement, score_cost, scores_of
from rotescope.mitigate.detectors.registry import get_detector
from rotescope.mitigate.methods.transition import PLAIN
from rotescope.mitigate.prompts.prompt import Prompt
from rotescope.mitigate.sampling.options import check_sampling
from rotescope.mitigate.sampling.sampler import sample_to_folder
from rotescope.models.pipelines import load_pipeline
from rotescope.procedures.checkpoint_prompts import dosed_prompts, provenance
from rotescope.procedures.plots.plan import draw_plan

ALONE = "images alone"  # no scores: a random order, then where a prompt's images agree


@dataclass(frozen=True)
class PlanConfig:
    checkpoint: str
    """a fine-tuned model's folder, with its manifest.parquet"""
    output_dir: str
    """curve.png, plan.json and samples/ go here"""
    prompts: int = 300
    """how many captions: the duplicated ones among others"""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """one image a caption and a seed"""
    detector: tuple[str, ...] = ("recall", "recall:n=1", "edges", "magnitude:n=4,steps=1", "anisotropy:n=1",
                                 "cliques:n=2,clique=2,num_inference_steps=8")
    """what ranks the prompts, each a curve"""
    orders: int = 500
    """random orders over which uniform sampling is averaged"""
    samples: str | None = None
    """the samples/ of an earlier run with the same captions and seeds, instead of sampling anew"""
    guidance_scale: float = 7.5
    """as it will be in an audit"""
    num_inference_steps: int = 25
    """denoising steps"""
    batch_size: int = 64
    """images at a time"""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """where the model runs"""
    overwrite: bool = False
    """replace output_dir"""


def captions_of(manifest, n):
    """-> n prompts of different captions, every duplicated one among them, in the manifest's order."""
    texts = {}
    for e in sorted(manifest, key=lambda e: e.group != "duplicated"):
        texts.setdefault(e.captions[0], Prompt(e.captions[0], e.group, e.image_id))
    chosen = {p.image_id for p in list(texts.values())[:n]}
    return [p for e in manifest for p in [texts[e.captions[0]]] if p.image_id == e.image_id and e.image_id in chosen]


def leaks_of(folder, prompts, manifest):
    """Samples -> {(prompt index, seed): whether that image copies the duplicated training image of its caption}."""
    with progress_bars(totals(folder, manifest)) as on_image:
        report = score_samples(folder, manifest, verify=False, alignment="none", on_image=on_image)
    known = {(p.prompt_index, p.seed): p for p in report.pairs}
    if any(known[i, s].prompt != prompts[i].text for i, s in known):
        raise InputError(f"{folder} holds other prompts: sample them anew, without --samples")
    leaking = {at: p.group == "duplicated" and p.is_copy and p.nearest == p.expected for at, p in known.items()}
    return leaking, {k: getattr(report, k) for k in ("descriptor", "copy_threshold", "threshold_rule", "hashes")}


def agreements_of(folder, n, seeds):
    """-> {(prompt index, k): pair_agreement of its first k images}, k from 2 on."""
    pictures = [[open_image(folder / f"none/images/P{i:05d}-S{s}.png") for s in seeds] for i in range(n)]
    return {(i, k): pair_agreement(some[:k]) for i, some in enumerate(pictures) for k in range(2, len(seeds) + 1)}


def found_ranked(scores, seeds, left, leaking, agreements):
    """-> how many leaks the ranked plan finds with `left` images."""
    made, found = {}, set()
    for jobs in ranked(scores, seeds, left, lambda i: agreements[i, made[i]]):
        for i, seed in jobs:
            made[i] = made.get(i, 0) + 1
            if leaking[i, seed]:
                found.add(i)
    return len(found)


def found_uniform(n, seeds, leaking, order):
    """-> how many leaks uniform sampling has found after each image (n × seeds,)."""
    jobs = uniform(n, seeds, n * len(seeds), seed=order)
    first = {}
    for position, (i, seed) in enumerate(jobs):
        if leaking[i, seed]:
            first.setdefault(i, position)
    return np.cumsum(np.bincount(list(first.values()), minlength=len(jobs)))


def needed(curve, target):
    """curve[b - 1]: leaks found with b images -> the least budget from which on `target` are found; None if there is none."""
    below = np.flatnonzero(np.asarray(curve) < target)
    b = int(below[-1]) + 2 if len(below) else 1
    return b if b <= len(curve) else None


def replay(config, prompts, leaking, agreements, scored):
    """scored: {detector: (scores, price in images)} -> leaks found at each budget from 1 on: uniformly (orders, budgets), and
    {plan: (budgets,)}."""
    n, most = len(prompts), len(prompts) * len(config.seeds)
    orders = np.array([found_uniform(n, config.seeds, leaking, order) for order in range(config.orders)])
    rng = np.random.default_rng(0)
    def curve(scores, cost=0):
        return [found_ranked(scores, config.seeds, int(b - cost), leaking, agreements) for b in range(1, most + 1)]
    alone = np.mean([curve(rng.permutation(n).tolist()) for _ in range(10)], 0)
    return orders, {name: np.array(curve(*told)) for name, told in scored.items()} | {ALONE: alone}


def table_of(uniform_curve, curves, n):
    """-> rows {plan, target, images, uniform_images, ratio}: target leaks, all that one image a prompt finds uniformly, or half.
    """
    whole = int(uniform_curve[n - 1])
    rows = []
    for target in sorted({whole, max(whole // 2, 1)}):
        base = needed(uniform_curve, target)
        for name, curve in curves.items():
            images = needed(curve, target)
            rows.append({"plan": name, "target": target, "images": images, "uniform_images": base,
                         "ratio": images and base and images / base})
    return rows


def measure(config):
    check_sampling(config)
    detectors = {name: get_detector(name) for name in config.detector}
    manifest, _ = dosed_prompts(config.checkpoint)
    prompts = captions_of(manifest, config.prompts)
    with output_folder(config.output_dir, config.overwrite) as draft:
        pipe, folder, seconds = load_pipeline(config.checkpoint).to(config.device), Path(config.samples or draft / "samples"), {}
        started = time.perf_counter()
        if not config.samples:
            with progress_bars({"images": len(prompts) * len(config.seeds)}) as advance:
                sample_to_folder(pipe, prompts, {"none": PLAIN}, config.seeds, folder, about=provenance(config),
                                 on_sample=lambda _: advance("images"), batch_size=config.batch_size,
                                 guidance_scale=config.guidance_scale, num_inference_steps=config.num_inference_steps)
            seconds["images"] = time.perf_counter() - started
        leaking, how = leaks_of(folder, prompts, manifest)
        scored = {}
        with progress_bars({name: d.n * len(prompts) for name, d in detectors.items()}) as advance:
            for name, detector in detectors.items():
                started = time.perf_counter()
                scores = scores_of(pipe, prompts, detector, manifest, batch_size=config.batch_size,
                                   on_image=lambda name=name: advance(name))
                seconds[name] = time.perf_counter() - started
                scored[name] = scores, score_cost(detector, len(prompts), config.num_inference_steps)
        orders, curves = replay(config, prompts, leaking, agreements_of(folder, len(prompts), config.seeds), scored)
        rows = table_of(orders.mean(0), curves, len(prompts))
        leaks = len({i for (i, _), leaked in leaking.items() if leaked})
        draw_plan(orders, curves, leaks, len(prompts), draft / "curve.png")
        found = {"prompts": len(prompts), "images": orders.shape[1], "leaks": leaks, "rows": rows, "seconds": seconds,
                 "cost": {name: cost for name, (_, cost) in scored.items()}}
        write_json(draft / "plan.json", {"config": plain(config), "versions": versions(), **how, **found, "curves": {
            "uniform": orders.mean(0).tolist(), **{name: curve.tolist() for name, curve in curves.items()}}})
    return found


def table(found):
    shown = Table("plan", "price of scores", "leaks found", "images", "uniform", "× uniform",
                  title=f"{found['leaks']} known leaks among {found['prompts']} prompts")
    for row in found["rows"]:
        cost, ratio = found["cost"].get(row["plan"], 0), row["ratio"]
        shown.add_row(row["plan"], f"{cost:.1f} images", str(row["target"]), str(row["images"] or "never"),
                      str(row["uniform_images"]), "–" if ratio is None else f"{ratio:.3f}",
                      style="bold" if ratio and ratio <= 1 / 3 else "")
    return shown


@exit_cleanly
def main(argv=None):
    config = parse(PlanConfig, sys.argv[1:] if argv is None else argv, prog="sampling_plan.py", description=__doc__)
    found = measure(config)
    Console(stderr=True).print(table(found))
    print(json.dumps({"curve": str(Path(config.output_dir) / "curve.png"), **found}))


if __name__ == "__main__":
    main()
