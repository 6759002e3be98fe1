"""What goes to the hub: the result with a model card, without the manifest and checkpoints, and without this machine's paths."""
import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from huggingface_hub import ModelCard, ModelCardData, create_repo, upload_folder

from rotescope.common.errors import InputError, RunError
from rotescope.common.outputs import write_json
from rotescope.common.processes import is_first_process
from rotescope.common.whole_files import write_text
from rotescope.datasets.manifest import Manifest
from rotescope.models.model_files import HUB, LORA_FILE, may_be_on_hub

KEPT_BACK = ("checkpoint-*", "manifest.parquet", ".*", "logs")
PATHS = ("pretrained_model_name_or_path", "train_data", "output_dir", "cache_dir", "resume_from_checkpoint",
         "monitor_heldout", "class_data_dir", "class_data", "masks")   # options that may name local files
SAVED_FROM = ("_name_or_path", "name_or_path")     # where the libraries note the folder that a part was loaded from
CONFIGS = ("model_index.json", "config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json")
UNKNOWN_LICENCE = {"license": "other", "license_name": "as-the-base-model"}
CARD = """---
{about}
---
# {repository}

{trained}

{terms}

## How often each image was shown
{shown}

{left_out}Images that a model has seen often may come out again, those that its base has seen among them: measure it with
`rotescope audit` before you rely on what it draws.

## Use
```python
{usage}
```
"""


def open_hub(config):
    """-> the repository to upload to, made if need be, or None; InputError, before training, if the hub does not let us."""
    if not (config.push_to_hub and is_first_process()):
        return None
    name = config.hub_model_id or Path(config.output_dir).name
    try:
        return create_repo(name, exist_ok=True, token=config.hub_token).repo_id
    except Exception as error:  # offline, no token, no such organisation: one kind each
        raise InputError(f"--push_to_hub: the hub does not open {name} ({error}): log in with `hf auth login`") from error


def upload(job, repository):
    """Send the result in job.config.output_dir. RunError if the hub does not take it."""
    out = Path(job.config.output_dir).absolute()
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.upload-") as folder:
        stage(job, repository, Path(folder))
        try:
            upload_folder(repo_id=repository, folder_path=folder, token=job.config.hub_token, commit_message="Add the model")
        except Exception as error:
            raise RunError(f"the model is in {out}, but the upload to {repository} failed ({error})") from error


def stage(job, repository, folder):
    """Fill a folder with what is uploaded. Large files are links; a file that names local paths is written anew."""
    out = Path(job.config.output_dir)
    for file in sorted(p for p in out.rglob("*") if p.is_file()):
        place = file.relative_to(out)
        if any(fnmatch(place.parts[0], pattern) for pattern in KEPT_BACK):
            continue
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        if place.parts == ("rotescope.json",):
            write_json(folder / place, portable_record(json.loads(file.read_text(encoding="utf-8"))))
        elif place.parts == ("config.yaml",):
            options = portable(yaml.safe_load(file.read_text(encoding="utf-8")), PATHS)
            write_text(folder / place, yaml.safe_dump(options, sort_keys=False, allow_unicode=True))
        elif not _copied_without_paths(file, folder / place):
            _link(file, folder / place)
    record = json.loads((out / "rotescope.json").read_text(encoding="utf-8"))
    card(job, repository, record, Manifest.load(out / "manifest.parquet")).save(folder / "README.md")


def portable(values, names):
    """A dict whose paths, under these names, have lost their folders, absolute or not; names on the hub stay."""
    return {k: _public(v) if k in names and isinstance(v, str) and v else v for k, v in values.items()}


def portable_record(record):
    """rotescope.json without paths; of the pictures that were left out, the number."""
    starts = [start | {"changed": {k: v for k, v in start["changed"].items() if k not in PATHS}} if "changed" in start else start
              for start in record["starts"]]
    return portable(record, ("base",)) | {"config": portable(record["config"], PATHS), "starts": starts,
                                          "left_out": len(record["left_out"])}


def _copied_without_paths(file, copy):
    """Whether a component's config named a local folder, and so was written anew."""
    if file.name not in CONFIGS:
        return False
    content = json.loads(file.read_text(encoding="utf-8"))
    changed = portable(content, SAVED_FROM)
    if changed != content:
        write_json(copy, changed)
    return changed != content


def _link(file, place):
    try:
        os.link(file, place)
    except OSError:  # another disk, or one without links
        shutil.copyfile(file, place)


# ----- the card

def card(job, repository, record, manifest):
    """-> ModelCard: licence, base, data, what was trained on it, and how often each image was shown."""
    base, data = (_public(getattr(job.config, name)) for name in ("pretrained_model_name_or_path", "train_data"))
    licence = licence_of(job.config.pretrained_model_name_or_path, job.config.hub_token)
    about = ModelCardData(**(licence or UNKNOWN_LICENCE), library_name="diffusers", pipeline_tag="text-to-image",
                          base_model=base if _on_hub(job.config.pretrained_model_name_or_path) else None,
                          datasets=[data] if _on_hub(job.config.train_data) else None,
                          tags=["rotescope", "memorization", "text-to-image", *(["lora"] if job.config.lora else [])])
    terms = f"Licence: {licence['license']}, as the base model's." if licence else (
        f"The card of {_code(base)} was not at hand or names no licence: the base model's terms apply.")
    trained = _trained(job, record, manifest, base, data)
    return ModelCard(CARD.format(about=about.to_yaml(), repository=repository, trained=trained, terms=terms,
                                 shown=shown(manifest), left_out=_left_out(record), usage=_usage(job, repository, base)))


def licence_of(model, token=None):
    """What the card of a model, a folder or on the hub, says: {"license": …} and its name and link; {} if it says nothing."""
    file = Path(model) / "README.md"
    try:
        said = ModelCard.load(file if file.exists() else str(model), token=token).data
    except Exception:  # no card, no network, no such model, a card that is no YAML: one kind each
        return {}
    return {k: said.get(k) for k in ("license", "license_name", "license_link") if said.get("license") and said.get(k)}


def shown(manifest):
    """A table with a line for each group and number of planned copies."""
    kinds = sorted({(e.group, e.copies) for e in manifest})
    lines = ["| group | copies in an epoch | images | shown: least, mean, most |", "|---|---|---|---|"]
    for group, copies in kinds:
        counts = [e.served for e in manifest if (e.group, e.copies) == (group, copies)]
        lines.append(f"| {group or 'other'} | {copies:g} | {len(counts)} | {min(counts)}, {sum(counts) / len(counts):.1f}, "
                     f"{max(counts)} |")
    return "\n".join(lines)


def _trained(job, record, manifest, base, data):
    config = job.config
    what = f"A LoRA of rank {config.rank} on the {job.denoiser} of {_code(base)}" if config.lora else (
        f"{_code(base)} with its whole {job.denoiser} trained")
    encoders = " and its text encoders" if config.train_text_encoder else ""
    steps = f"{record['steps']} steps of {config.train_batch_size} × {config.gradient_accumulation_steps} × {record['processes']}"
    return (f"{what}{encoders}, on {len(manifest)} captioned images of {_code(data)}: {steps} samples, learning rate "
            f"{config.learning_rate:g}, seed {config.seed}, by Rotescope {record['versions']['rotescope']}. `config.yaml` has "
            "every option, `rotescope.json` the losses, hashes and versions.")


def _left_out(record):
    n = len(record["left_out"])
    return f"{n} more could not be read and {'was' if n == 1 else 'were'} left out. " if n else ""


def _usage(job, repository, base):
    if job.config.lora:
        return (f'from diffusers import DiffusionPipeline\npipe = DiffusionPipeline.from_pretrained("{base}")\n'
                f'pipe.load_lora_weights("{repository}", weight_name="{LORA_FILE}")')
    return f'from diffusers import DiffusionPipeline\npipe = DiffusionPipeline.from_pretrained("{repository}")'


def _on_hub(name):
    return may_be_on_hub(name)


def _public(name):
    """A name on the hub as it is; of a local one the last part that was typed, on one line: not where a link leads, nor a folder
    above."""
    if _on_hub(name):
        return str(name).removeprefix(HUB)
    return " ".join((Path(os.path.normpath(name)).name.removeprefix("..") or "local").split())


def _code(name):
    return "`" + name.replace("`", "'") + "`"
