"""Draw what the figures of Jain et al. (CVPR 2025) claim, from a fine-tuned model of one's own, and say which claims held."""
from dataclasses import asdict, dataclass, replace
from itertools import combinations

import numpy as np
import torch

from rotescope.common.errors import InputError
from rotescope.common.outputs import check_output, output_folder, versions, write_json
from rotescope.common.progress import progress_bars
from rotescope.common.settings import plain
from rotescope.datasets.images.square import typical_side
from rotescope.evaluate.descriptors.registry import get_descriptor
from rotescope.evaluate.inputs.output_checks import samples_kept
from rotescope.evaluate.inputs.samples import read_samples
from rotescope.evaluate.measurement.findings import score_samples, totals
from rotescope.evaluate.neighbours.index import embed
from rotescope.evaluate.report.json_types import as_json
from rotescope.evaluate.statistics import paper_claims as claims
from rotescope.mitigate.contract.families import two_branch_scale
from rotescope.mitigate.contract.mitigation import Mitigation
from rotescope.mitigate.methods.transition import PLAIN, ScaleRun, TransitionGuidance
from rotescope.mitigate.sampling.options import check_sampling
from rotescope.mitigate.sampling.sampler import sample_to_folder
from rotescope.models.memory import check_memory
from rotescope.models.pipelines import chosen_device, open_checkpoint
from rotescope.procedures.checkpoint_prompts import dosed_prompts, going_on_with, provenance
from rotescope.procedures.plots.figures import draw_all


@dataclass(frozen=True)
class Watched(Mitigation):
    """One scale from start to end, both branches at every step, so that the whole gap curve is recorded."""
    scale: float = 0.0

    def begin(self, n, guidance_scale, device):
        return _Watch(self.scale, n)


class _Watch(ScaleRun):
    def __init__(self, fixed, n):
        super().__init__(n)
        self.fixed = fixed

    def scale(self, timestep):
        return torch.full((self.n,), self.fixed, dtype=torch.float64)

    def tracked(self, timestep):
        return torch.ones(self.n, dtype=torch.bool)


def policies(config):
    """{name: mitigation}: plain, the two watched ones, and the sweeps of delayed and opposite guidance."""
    sweep = {f"{name}-{t}": TransitionGuidance(before, t)
             for name, before in (("delayed", 0.0), ("opposite", config.before)) for t in config.transitions}
    return {"none": PLAIN, "unguided": Watched(0.0), "watched-opposite": Watched(config.before), **sweep}


def sample_curves(config, folder):
    """Sample the duplicated captions under every policy into folder/samples, the controls unguided into folder/controls."""
    manifest, prompts = dosed_prompts(config.checkpoint)
    chosen = policies(config)
    jobs = {"samples": ("duplicated", chosen), "controls": ("control", {"unguided": chosen["unguided"]})}
    pipe = open_checkpoint(config, config.checkpoint)
    scale = two_branch_scale(pipe, config.guidance_scale)
    bars = {f"{group} {name}": len(prompts[group]) * len(config.seeds) for group, names in jobs.values() for name in names}
    with progress_bars(bars) as advance:
        for name, (group, methods) in jobs.items():
            sample_to_folder(pipe, prompts[group], methods, config.seeds, folder / name, about=provenance(config),
                             on_sample=lambda method, group=group: advance(f"{group} {method}"),
                             guidance_scale=scale, num_inference_steps=config.num_inference_steps,
                             batch_size=config.batch_size)
    return manifest


class Curves:
    """The records of both folders, as arrays by method and group."""

    def __init__(self, folder):
        self.samples, self.controls = read_samples(folder / "samples"), read_samples(folder / "controls")

    def of(self, method, group="duplicated"):
        """Records in the order of prompt and seed."""
        chosen = self.samples if group == "duplicated" else self.controls
        return sorted((r for r in chosen.records if r.method == method), key=lambda r: (r.prompt_index, r.seed))

    def gaps(self, method, group="duplicated"):
        """-> (images, steps), and the timesteps."""
        records = self.of(method, group)
        return np.array([r.prediction_gaps for r in records]), list(records[0].timesteps)

    def fall_timesteps(self, method):
        gaps, timesteps = self.gaps(method)
        return np.array([claims.fall_timestep(curve, timesteps) for curve in gaps])

    def likeness(self, method, descriptor):
        """Mean similarity between the seeds of each duplicated prompt (prompts,)."""
        by_prompt = {}
        for r in self.of(method):
            by_prompt.setdefault(r.prompt_index, []).append(r)
        found = []
        for records in by_prompt.values():
            vectors, _ = embed([lambda r=r: self.samples.open(r) for r in records], descriptor)
            found.append(np.mean([vectors[i] @ vectors[j] for i, j in combinations(range(len(vectors)), 2)]))
        return np.array(found)


def points_of(report, family, transitions):
    """GroupFindings of duplicated prompts in one sweep, latest switch last."""
    return [replace(report[f"{family}-{t}"]["duplicated"], transition_timestep=t) for t in transitions]


def assess_claims(curves, report, config, descriptor):
    """-> the seven claims, and what is drawn for each. descriptor: the Descriptor by which images are alike."""
    delayed, opposite = (points_of(report, f, config.transitions) for f in ("delayed", "opposite"))
    plainly, n_seeds = report["none"]["duplicated"], len(config.seeds)
    unguided, against = curves.fall_timesteps("unguided"), curves.fall_timesteps("watched-opposite")
    likeness = [curves.likeness(m, descriptor) for m in ("none", "unguided")]
    found = [
        claims.drops_tell(curves.gaps("unguided")[0], curves.gaps("unguided", "control")[0]),
        claims.drops_vary(unguided.reshape(-1, n_seeds)), claims.later_is_newer(delayed, plainly),
        claims.guidance_converges(*likeness), claims.basin_narrows(delayed, plainly),
        claims.opposite_is_earlier(unguided, against), claims.similarity_costs_alignment(delayed),
    ]
    return found, {"delayed": as_json(delayed), "opposite": as_json(opposite), "plain": as_json(plainly),
                   "unguided": unguided, "against": against, "likeness": likeness}


def run_figures(config):
    """Sample, judge and draw -> list of Claim; everything lies in config.output_dir afterwards."""
    check_output(config.output_dir, config.overwrite, min_free_mb=100, inputs=(config.checkpoint,))
    check_sampling(config)
    check_memory(config, chosen_device(config.device), config.checkpoint)
    if len(config.seeds) < 2 or not config.transitions or list(config.transitions) != sorted(config.transitions, reverse=True):
        raise InputError("figures needs two or more --seeds, and --transitions from high to low")
    with (output_folder(config.output_dir, config.overwrite) as draft,
          samples_kept(draft, going_on_with(config), more=("controls",))):
        manifest = sample_curves(config, draft)
        with progress_bars(totals(draft / "samples", manifest, verify=False)) as on_image:
            report = score_samples(draft / "samples", manifest, verify=False, on_image=on_image)
        curves = Curves(draft)
        side = min(curves.samples.side, typical_side([e.open for e in manifest]))  # as score_samples chooses by it
        found, drawn = assess_claims(curves, report, config, get_descriptor("auto", side))
        draw_all(curves, drawn, found, draft, {e.image_id: e for e in manifest}, report.copy_threshold)
        write_json(draft / "claims.json", {
            "claims": [asdict(c) for c in found], "descriptor": report.descriptor,
            "copy_threshold": as_json(report.copy_threshold), "threshold_rule": report.threshold_rule,
            "config": plain(config), "versions": versions(),
            "hashes": report.hashes, "delayed": drawn["delayed"], "opposite": drawn["opposite"]})
    return found
