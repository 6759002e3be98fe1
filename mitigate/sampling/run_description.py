"""Sampling with bars and provenance: what run.json says of a run."""
import hashlib
from pathlib import Path

from rotescope.common.outputs import sha256, versions
from rotescope.common.progress import progress_bars
from rotescope.common.settings import plain
from rotescope.datasets.manifest import line_safe
from rotescope.mitigate.contract.mitigation import settings_of
from rotescope.mitigate.sampling.jobs import jobs_of
from rotescope.mitigate.sampling.sampler import sample_to_folder
from rotescope.models.model_files import find_embedding, find_lora, lora_names, lora_strength
from rotescope.models.single_files.checks import find_model_path, model_sha256


def sample_with(config, pipe, prompts, policies, folder, seeds=None):
    """Sample into `folder` with bars and provenance; `config`: any SamplingOptions. seeds: as the sampler
    has them, if not the config's."""
    sample_described(config, pipe, prompts, policies, folder, describe(config, prompts, policies), seeds=seeds)


def describe(config, prompts, policies):
    """-> what run.json says of a run; the sampler adds a guidance scale that is the pipeline's own."""
    sampling = {key: value for key, value in config.sampling.items() if key != "guidance_scale" or value is not None}
    return {"config": plain(config), "model": str(config.model), "versions": versions(),
            "hashes": hashes_of(config, prompts) | files_of(policies),
            "methods": {name: settings_of(p) for name, p in policies.items()}, "seeds": list(config.seeds),
            **sampling, "batch_size": config.batch_size}


def hashes_of(config, prompts):
    """-> SHA-256 of the model, the LoRA if there is one, and the prompts."""
    lines = "".join("\t".join(map(line_safe, (p.text, p.group, p.image_id, *map(str, p.size or ())))) + "\n" for p in prompts)
    model = model_sha256(find_model_path(config.model, config.model_config))
    found = {"model": model, "prompts": hashlib.sha256(lines.encode()).hexdigest()}
    embeddings = {f"embedding {text}": sha256(find_embedding(text)[1]) for text in config.embedding or ()}
    return found | _lora_hashes(config.lora) | embeddings


def _lora_hashes(given):
    """One LoRA's SHA-256 at strength 1; of several, or at another strength, each with its strength."""
    loras = [(sha256(find_lora(text)), lora_strength(text)[1]) for text in lora_names(given)]
    if len(loras) == 1 and loras[0][1] == 1:
        return {"lora": loras[0][0]}
    return {"lora": " ".join(f"{found}:{strength:g}" for found, strength in loras)} if loras else {}


def files_of(policies):
    """-> SHA-256 of each file that a setting names: a calibration, a manifest, ordinary prompts."""
    named = {str(value) for policy in policies.values() for value in vars(policy).values()
             if isinstance(value, str | Path) and str(value)}
    return {f"file {name}": sha256(name) for name in sorted(named) if Path(name).is_file()}


def sample_described(config, pipe, prompts, policies, folder, about, state=None, seeds=None):
    seeds = config.seeds if seeds is None else seeds
    totals = dict.fromkeys(policies, len(jobs_of(prompts, seeds)))
    with progress_bars(totals, disable=bool(state and not state.is_main_process)) as advance:
        sample_to_folder(pipe, prompts, policies, seeds, folder, about=about, on_sample=advance, state=state,
                         batch_size=config.batch_size, **config.sampling)
