"""What a fine-tune learns by rote while it trains: the copy rate and the prediction gap of its captions, every so many steps.

    rotescope finetune --monitor_steps 25 --output_dir runs/finetuned
    rotescope finetune --monitor_steps 25 --stop_at_copy_rate 0.5 --output_dir runs/dosed

Leaves monitor.jsonl, a line a measurement, and monitor.png in the output folder. Three groups of captions are sampled by the
model as it is, plainly and always from the same noise: duplicated ones, controls, and held-out ones, which no training image
bears. A copy is what `rotescope score` calls one without held-out pictures. Training feels nothing of it.
"""
import json
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from rotescope.common.errors import InputError, RunError
from rotescope.common.whole_files import write_text
from rotescope.datasets.readers.sources import load_source
from rotescope.evaluate.inputs.samples import read_samples
from rotescope.evaluate.measurement.layers import make_layers
from rotescope.evaluate.measurement.per_group import group_findings
from rotescope.evaluate.measurement.per_image import measure
from rotescope.evaluate.neighbours.index import unique
from rotescope.evaluate.options import Measuring
from rotescope.evaluate.report.json_types import as_json
from rotescope.evaluate.statistics.paper_claims import mean_interval
from rotescope.mitigate.contract.families import family
from rotescope.mitigate.methods.transition import PLAIN
from rotescope.mitigate.prompts.prompt import Prompt, caption_prompts, load_prompts
from rotescope.mitigate.sampling.sampler import NoNumbersError, sample_to_folder
from rotescope.procedures.plots.monitor import draw_monitor
from rotescope.train.options.finetune_options import EMBEDDED
from rotescope.train.tracking.validation import sampling

DOSED = ("duplicated", "control")
FAMILIES = ("sd", "sdxl", "sd3")
AT_ONCE = 8  # images, beside a training that fills the memory
KEPT = ("n", "n_prompts", "copies", "copy_rate", "copy_rate_interval", "own_copy_rate", "top1_mean")  # of evaluate's figures


def monitor_of(job, say=None):
    """The Monitor of a Job whose config has monitor_steps. InputError, before anything expensive, if there is nothing to measure.

    `say(line)` is called with a line for people after each measurement.
    """
    config, manifest = job.config, job.manifest
    if family(job.pipe) not in FAMILIES:
        raise InputError(f"--monitor_steps serves Stable Diffusion 1, 2, 3 and XL, not a {type(job.pipe).__name__}: leave it out")
    if len(unique(manifest)[0]) < 2:
        raise InputError("--monitor_steps needs two different training images at least, to tell likeness from copies: add some")
    prompts = [p for p in caption_prompts(manifest, DOSED, config.monitor_prompts) if p.group] + heldout_prompts(config, manifest)
    if config.stop_at_copy_rate and not manifest.group("duplicated"):
        raise InputError(f"--stop_at_copy_rate {config.stop_at_copy_rate} looks at duplicated captions, and no image is "
                         "duplicated: pass --duplicated and --copies")
    if not prompts:
        raise InputError("--monitor_steps finds no captions: pass --duplicated, --controls or --monitor_heldout")
    return Monitor(job, prompts, say or (lambda line: None))


def heldout_prompts(config, manifest):
    """Different captions of --monitor_heldout that no training image bears, at most monitor_prompts of them."""
    file = config.monitor_heldout
    if file is None and Path(config.train_data).resolve() == EMBEDDED["train_data"].resolve():
        file = EMBEDDED["train_data"].with_name("heldout.parquet")
    if file is None:
        return []
    found = caption_prompts(load_source(file), ()) if Path(file).is_dir() else load_prompts(file, ())
    seen = set(manifest.captions())
    unseen = dict.fromkeys(p.text for p in found if p.text not in seen)
    if not unseen:
        raise InputError(f"every caption of --monitor_heldout {file} is a training image's too: name captions that are held out")
    return [Prompt(text, "heldout") for text in list(unseen)[:config.monitor_prompts]]


class Monitor:
    """Called with the Run before its first step and after each, in every process -> whether to stop there, the same in all.

    The main process alone measures, and keeps what it measured in OUTPUT_DIR.
    """

    def __init__(self, job, prompts, say):
        self.config, self.prompts, self.say = job.config, prompts, say
        self.file = Path(job.config.output_dir) / "monitor.jsonl"
        self.begun, self.lines, self.layers = False, [], {}

    def __call__(self, run):
        due = run.step and (run.step % self.config.monitor_steps == 0 or run.step == run.total)
        if self.begun and not due:
            return False
        if run.accelerator.is_main_process:
            if not self.begun:
                self._begin(run)
            if due and run.step not in [line["step"] for line in self.lines]:
                self._add(run)
            self._tell(run)
        self.begun = True
        stop = torch.tensor(float(self.reached), device=run.accelerator.device)
        return run.accelerator.reduce(stop, "sum").item() > 0  # the others wait here

    @property
    def reached(self):
        """Whether the last measurement is at the dose, or above it."""
        wanted = self.config.stop_at_copy_rate
        return bool(wanted and self.lines and self.lines[-1]["groups"]["duplicated"]["copy_rate"] >= wanted)

    def _begin(self, run):
        """Index the training images; take up the curve of the run that is resumed, as far as its checkpoint."""
        with torch.random.fork_rng([]):  # in case a descriptor's network is built
            self.layers = make_layers(run.job.preprocessing.resolution, run.job.manifest, None, None, Measuring())
        self.lines = [line for line in read_lines(run.job.resume) if line["step"] <= run.step] if run.job.resume else []
        for line in self.lines[-1:]:
            for what, now in self._conditions().items():
                if line.get(what) != now:
                    raise InputError(f"{self.file.name} beside {run.job.resume} was measured with {what} {line.get(what)}, "
                                     f"not {now}: measure as before, or remove it")
        if self.lines:
            self._write()

    def _conditions(self):
        """What a curve must have in common all along."""
        config = self.config
        return {"descriptor": self.layers["descriptor"].index.descriptor.name, "prompts": len(self.prompts),
                "seeds": config.monitor_seeds, "guidance_scale": config.monitor_guidance_scale,
                "num_inference_steps": config.monitor_inference_steps}

    def _add(self, run):
        """Measure, and leave it in the files and at the trackers."""
        layer, exact = self.layers["descriptor"], self.layers["exact"]
        groups = measured(run, self.prompts, self.layers)
        self.lines.append({"step": run.step, "groups": groups, **self._conditions(), "copy_threshold": layer.threshold,
                           "threshold_rule": layer.rule, "exact": {"threshold": exact.threshold, "rule": exact.rule}})
        self._write()
        run.accelerator.log({f"{name}/{group}": cell[name] for group, cell in groups.items()
                             for name in ("copy_rate", "prediction_gap")}, step=run.step)
        self.say(line_in_words(self.lines[-1]))

    def _write(self):
        """After each measurement, so that a run that fails or is killed leaves its curve."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, "".join(json.dumps(line, allow_nan=False) + "\n" for line in self.lines))
        draw_monitor(self.lines, self.file.with_suffix(".png"), self.config.stop_at_copy_rate)

    def _tell(self, run):
        """What goes into rotescope.json, and how a run to a dose ended."""
        wanted = self.config.stop_at_copy_rate
        if self.lines:
            run.notes["monitor"] = self.lines[-1] | ({"stop_at_copy_rate": wanted, "reached": self.reached} if wanted else {})
        if self.reached:
            self.say(f"the dose is reached at step {run.step}, and training stops: "
                     f"{_share(self.lines[-1]['groups']['duplicated'])}, --stop_at_copy_rate {wanted:g}")
        elif wanted and run.step == run.total:
            self.say(f"the dose was not reached in {run.total} steps: {_share(self.lines[-1]['groups']['duplicated'])}, "
                     f"--stop_at_copy_rate {wanted:g}")


def read_lines(checkpoint):
    """The measurements beside a checkpoint, oldest first."""
    file = Path(checkpoint).parent / "monitor.jsonl"
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}): remove it") from error


@contextmanager
def _blaming(run):
    """Numbers that are none come from the training."""
    try:
        yield
    except NoNumbersError as error:
        raise RunError(f"the predictions are no numbers at step {run.step}: lower --learning_rate") from error


def measured(run, prompts, layers):
    """-> {group: evaluate's figures on the images that the model makes now, and their mean prediction gap at the first step}."""
    config = run.job.config
    with TemporaryDirectory() as folder:
        with sampling(run) as pipe, _blaming(run):
            sample_to_folder(pipe, prompts, {"none": PLAIN}, range(config.monitor_seeds), Path(folder), batch_size=AT_ONCE,
                             guidance_scale=config.monitor_guidance_scale, num_inference_steps=config.monitor_inference_steps,
                             resolution=run.job.preprocessing.resolution)
        samples = read_samples(folder)
        groups = group_findings(samples, measure(samples, layers, run.job.manifest), layers["descriptor"])["none"]
    found = {}
    for group, findings in groups.items():
        gaps = [first_gap(r) for r in samples.records if r.group == group]
        with _blaming(run):
            if not np.isfinite(gaps).all():
                raise NoNumbersError(group)
        gap, *interval = mean_interval(gaps)
        known = as_json(findings, digits=None)
        found[group] = {k: known[k] for k in KEPT} | {"prediction_gap": gap, "prediction_gap_interval": interval} | (
            {"served": served(run, group)} if group in DOSED else {})
    return found


def first_gap(record):
    """‖eps_cond − eps_uncond‖₂ at the first step where the text matters to ε. Flow matching begins at pure noise, where ε is that
    noise whatever the text, and the gap 0: there it is the second step."""
    return next((gap for gap in record.prediction_gaps if gap), 0.0)


def served(run, group):
    """The dose so far: how often training has shown each image of a group."""
    counts = run.served.numpy()[[e.group == group for e in run.job.manifest]]
    return {"images": len(counts), "least": int(counts.min()), "mean": float(np.mean(counts)), "most": int(counts.max())}


def line_in_words(line):
    """A measurement as one line for people."""
    cells = line["groups"].items()
    return (f"step {line['step']}: copy rate " + ", ".join(f"{group} {_share(cell)}" for group, cell in cells)
            + "; prediction gap " + ", ".join(f"{group} {cell['prediction_gap']:.3g}" for group, cell in cells))


def _share(cell):
    low, high = cell["copy_rate_interval"]
    return f"{cell['copy_rate']:.2f} [{low:.2f}, {high:.2f}] of {cell['n']}"
