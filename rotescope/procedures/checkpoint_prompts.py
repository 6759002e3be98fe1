"""A checkpoint that memorized under a known dose: its manifest says which captions were duplicated and which are controls."""
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.common.outputs import folder_sha256, versions
from rotescope.common.settings import plain
from rotescope.datasets.manifest import Manifest
from rotescope.mitigate.prompts.prompt import caption_prompts
from rotescope.models.model_files import find_model


def dosed_prompts(checkpoint):
    """A fine-tuned model's folder -> Manifest, {"duplicated": prompts, "control": prompts}; InputError if one is empty."""
    find_model(checkpoint)
    manifest = Manifest.load(Path(checkpoint) / "manifest.parquet")
    prompts = {group: [p for p in caption_prompts(manifest, (group,)) if p.group == group] for group in ("duplicated", "control")}
    if not all(prompts.values()):
        raise InputError(f"{checkpoint}/manifest.parquet marks no duplicated or no control images: "
                         "fine-tune with --duplicated and --controls")
    return manifest, prompts


def provenance(config):
    """What run.json says of samples of config.checkpoint."""
    return {"config": plain(config), "model": config.checkpoint, "versions": versions(),
            "hashes": {"model": folder_sha256(find_model(config.checkpoint))}}
