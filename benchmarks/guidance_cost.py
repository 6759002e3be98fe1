"""What each mitigation costs against plain guidance without any hook, side by side in one run.

    python benchmarks/guidance_cost.py --output_file runs/guidance_cost.json
    python benchmarks/guidance_cost.py --model stabilityai/stable-diffusion-2-1-base --mitigation none stp dtp --device cuda

Each round samples once per mitigation and once without any, in an order drawn anew; medians over the rounds are compared. `none`
against no hook at all is the overhead of the hook. Denoiser rows are counted, not estimated, and do not depend on the machine.
"""
import random
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from output_file import keep_rows
from rich.console import Console
from rich.table import Table

from rotescope.common.errors import exit_cleanly
from rotescope.common.progress import progress_bars
from rotescope.common.settings import parse
from rotescope.mitigate.adapters.pipeline_hook import mitigated
from rotescope.mitigate.methods.registry import get_mitigation
from rotescope.models.model_options import BASE
from rotescope.models.pipelines import load_pipeline

BARE = "(no hook)"
PROMPTS = ("a cat on a blue background", "a bus on a red background", "a frog and a pig on a pink background", "a rocket")


@dataclass(frozen=True)
class CostConfig:
    model: str = str(BASE)
    """model folder in diffusers' layout, or its name on the hub"""
    mitigation: tuple[str, ...] = ("none", "stp", "og-stp", "dtp", "og-dtp", "og-dtp-released", "cfg-linear", "beta-cfg", "tcfg")
    """what to compare"""
    images: int = 4
    """in one batch"""
    num_inference_steps: int = 50
    """of the pipeline's own scheduler"""
    guidance_scale: float = 7.5
    """after the transition"""
    rounds: int = 7
    """each samples every mitigation once"""
    output_file: str | None = None
    """where the figures go, as JSON"""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """where the model runs"""


def sample_once(pipe, mitigation, config):
    """-> seconds, denoiser rows an image (None without a hook)."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(config.images)]
    noise = [torch.Generator().manual_seed(i) for i in range(config.images)]
    _wait(config.device)
    start = time.perf_counter()
    with mitigated(pipe, mitigation) if mitigation else nullcontext() as run:
        pipe(prompts, guidance_scale=config.guidance_scale, num_inference_steps=config.num_inference_steps, generator=noise,
             output_type="latent")
    _wait(config.device)
    return time.perf_counter() - start, run and statistics.mean(run.denoiser_rows)


def measure(config):
    """-> one dict a mitigation, the bare pipeline first; ratios to it."""
    mitigations = {BARE: None} | {name: get_mitigation(name) for name in config.mitigation}
    pipe = load_pipeline(config.model).to(config.device)
    pipe.set_progress_bar_config(disable=True)
    seconds, rows = {name: [] for name in mitigations}, {BARE: 2.0 * config.num_inference_steps}
    sample_once(pipe, None, config)  # warm up
    with progress_bars({"rounds": config.rounds * len(mitigations)}) as advance:
        for _ in range(config.rounds):
            for name in random.sample(list(mitigations), len(mitigations)):
                elapsed, counted = sample_once(pipe, mitigations[name], config)
                seconds[name].append(elapsed)
                rows.setdefault(name, counted)
                advance("rounds", name)
    base = statistics.median(seconds[BARE])
    return [{"mitigation": name, "rows": rows[name], "rows_ratio": rows[name] / rows[BARE],
             "seconds": statistics.median(seconds[name]), "seconds_ratio": statistics.median(seconds[name]) / base,
             "fastest_ratio": min(seconds[name]) / min(seconds[BARE])} for name in mitigations]


def _wait(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def table(found):
    shown = Table("mitigation", "denoiser rows", "× plain", "seconds", "× plain", "fastest × plain")
    for row in found:
        shown.add_row(row["mitigation"], f"{row['rows']:.0f}", f"{row['rows_ratio']:.2f}", f"{row['seconds']:.3f}",
                      f"{row['seconds_ratio']:.3f}", f"{row['fastest_ratio']:.3f}")
    return shown


@exit_cleanly
def main(argv=None):
    config = parse(CostConfig, sys.argv[1:] if argv is None else argv, prog="guidance_cost.py", description=__doc__)
    found = measure(config)
    Console(stderr=True).print(table(found))
    keep_rows(config, found, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
