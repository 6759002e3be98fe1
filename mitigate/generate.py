"""Sample prompts × seeds × mitigations into a folder of images and records.

    rotescope generate --model runs/demo/checkpoint --prompts prompts.txt --mitigation none og-stp --output_dir runs/samples
    rotescope generate --prompts prompts.txt --mitigation stp:transition=600 --seeds 0 1 --output_dir runs/stp-600

    accelerate launch mitigate/generate.py --prompts prompts.txt --output_dir runs/samples --resume      # several GPUs or nodes

--prompts takes a .txt file (one a line), a .csv, .jsonl or .parquet with a `prompt` or `caption`, or the manifest.parquet that a
fine-tune leaves beside its checkpoint: then the duplicated and the control captions are sampled.
A run that was stopped stays beside output_dir and goes on under --resume. Several processes share the work, on one file system,
and make the images that one would make.
"""
import hashlib
import json
import re
import sys
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from rotescope.common.errors import InputError, exit_cleanly
from rotescope.common.models import ModelOptions, check_model, find_lora, find_model, open_model
from rotescope.common.outputs import check_output, folder_sha256, sha256, versions
from rotescope.common.parquet import read_schema
from rotescope.common.progress import progress_bars
from rotescope.common.settings import parse, plain
from rotescope.datasets.manifest import Manifest
from rotescope.mitigate.methods.registry import get_mitigation
from rotescope.mitigate.prompts.prompt import at_most, prompts_of, read_prompts
from rotescope.mitigate.sampling.resumable_folder import check_same, is_finished, resumable_folder
from rotescope.mitigate.sampling.sampler import jobs_of, sample_to_folder


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(ModelOptions):
    """What every command that samples prompts lets a user choose alike."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """one image a prompt and a seed; the same seed gives the same image in every batch"""
    guidance_scale: float = 7.5
    """after the transition; 1 is off, as in diffusers"""
    num_inference_steps: int = 50
    """of the pipeline's own scheduler"""
    resolution: int | None = None
    """side of the images in pixels; the model's own unless given"""
    batch_size: int = 64
    """images at a time"""

    @property
    def sampling(self):
        """What the sampler is to be told beside prompts and seeds, but for the batch size, which changes no image."""
        return {"guidance_scale": self.guidance_scale, "num_inference_steps": self.num_inference_steps,
                "resolution": self.resolution}


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


def is_manifest(file):
    return Path(file).suffix == ".parquet" and Path(file).is_file() and "captions" in read_schema(file).names


def load_prompts(file, groups, limit=None):
    """A prompts file or a manifest -> list of Prompt, at most `limit` a group."""
    if is_manifest(file):
        return prompts_of(Manifest.load(file), groups, limit)
    return at_most(read_prompts(file), limit)


def check(config):
    """Raise InputError for whatever would stop the run later -> {name: policy}."""
    if not (config.resume and is_finished(config.output_dir)):
        check_output(config.output_dir, config.overwrite,
                     inputs=(config.model, config.lora, config.prompts, *config.mitigation))
    check_model(config)
    check_sampling(config)
    return named_policies(config.mitigation)


def check_sampling(config):
    """Raise InputError where guidance_scale, num_inference_steps, batch_size or seeds of any config cannot be sampled with."""
    if config.guidance_scale <= 1:
        raise InputError(f"guidance_scale={config.guidance_scale}: diffusers then sends one branch only; give a scale above 1")
    if config.num_inference_steps < 1 or config.batch_size < 1 or not config.seeds:
        raise InputError("num_inference_steps and batch_size must be 1 or more, and there must be a seed")
    if len(set(config.seeds)) < len(config.seeds):
        raise InputError(f"a seed is named twice: {' '.join(map(str, config.seeds))}")


def named_policies(texts):
    """-> {name: policy}."""
    return dict(zip(unique_names(texts, "mitigation"), map(get_mitigation, texts), strict=True))


def unique_names(texts, what):
    """NAME[:settings] -> names for files; one carries its settings only where two would share it. InputError for a repetition."""
    names = [text.partition(":")[0] for text in texts]
    unique = [name if names.count(name) == 1 else re.sub(r"[^\w.=+-]", "_", text)
              for text, name in zip(texts, names, strict=True)]
    if len(set(unique)) < len(unique):
        raise InputError(f"a {what} is named twice: {' '.join(texts)}")
    return unique


def generate(config):
    """Sample as `config` says -> the samples folder. Under `accelerate launch` every process calls it."""
    policies = check(config)
    prompts = load_prompts(config.prompts, config.groups, config.max_prompts)
    state = PartialState(cpu=config.device == "cpu", timeout=timedelta(days=1))  # the fastest process may wait long
    about = describe(config, prompts, policies) if state.is_main_process else {}
    if config.resume and is_finished(config.output_dir):
        if state.is_main_process:
            check_same(Path(config.output_dir), about)
        return Path(config.output_dir)
    pipe = open_model(replace(config, device=str(state.device)) if config.device == "cuda" else config)
    with resumable_folder(config.output_dir, about, state, overwrite=config.overwrite, resume=config.resume) as draft:
        _sample(config, pipe, prompts, policies, draft, about, state)
    return Path(config.output_dir)


def sample_with(config, pipe, prompts, policies, folder, seeds=None):
    """Sample into `folder` with bars and provenance; `config`: any SamplingOptions. seeds: as the sampler
    has them, if not the config's."""
    _sample(config, pipe, prompts, policies, folder, describe(config, prompts, policies), seeds=seeds)


def describe(config, prompts, policies):
    """-> what run.json says of a run."""
    return {"config": plain(config), "model": str(config.model), "versions": versions(),
            "hashes": hashes_of(config, prompts) | files_of(policies),
            "methods": {name: asdict(p) for name, p in policies.items()}, "seeds": list(config.seeds),
            **config.sampling, "batch_size": config.batch_size}


def hashes_of(config, prompts):
    """-> SHA-256 of the model, the LoRA if there is one, and the prompts."""
    lines = "".join(f"{p.text}\t{p.group}\t{p.image_id}\n" for p in prompts)
    found = {"model": folder_sha256(find_model(config.model)), "prompts": hashlib.sha256(lines.encode()).hexdigest()}
    return found | ({"lora": sha256(find_lora(config.lora))} if config.lora else {})


def files_of(policies):
    """-> SHA-256 of each file that a setting names: a calibration, a manifest, ordinary prompts."""
    named = {value for policy in policies.values() for value in vars(policy).values() if isinstance(value, str) and value}
    return {f"file {name}": sha256(name) for name in sorted(named) if Path(name).is_file()}


def _sample(config, pipe, prompts, policies, folder, about, state=None, seeds=None):
    seeds = config.seeds if seeds is None else seeds
    totals = dict.fromkeys(policies, len(jobs_of(prompts, seeds)))
    with progress_bars(totals, disable=bool(state and not state.is_main_process)) as advance:
        sample_to_folder(pipe, prompts, policies, seeds, folder, about=about, on_sample=advance, state=state,
                         batch_size=config.batch_size, **config.sampling)


@exit_cleanly
def main(argv=None):
    config = parse(GenerateConfig, sys.argv[1:] if argv is None else argv, prog="rotescope generate", description=__doc__)
    samples = generate(config)
    if PartialState().is_main_process:
        print(json.dumps({"samples": str(samples)}))


if __name__ == "__main__":
    main()
