"""A checkpoint that memorized under a known dose: its manifest says which captions were duplicated and which are controls."""
from functools import lru_cache
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.common.outputs import folder_sha256, versions
from rotescope.common.settings import plain
from rotescope.datasets.manifest import Manifest
from rotescope.datasets.readers.sources import load_source
from rotescope.mitigate.prompts.prompt import caption_prompts
from rotescope.models.model_files import find_model
from rotescope.train.options.finetune_options import EMBEDDED

EMBEDDED_HELDOUT = EMBEDDED["train_data"].with_name("heldout.parquet")


def dosed_prompts(checkpoint):
    """A fine-tuned model's folder -> Manifest, {"duplicated": prompts, "control": prompts}; InputError if one is empty."""
    find_model(checkpoint)
    file = Path(checkpoint) / "manifest.parquet"
    if not file.exists():
        raise InputError(f"{checkpoint} has no manifest.parquet beside it, which says what was duplicated: fine-tune it with "
                         "--duplicated and --controls; rotescope audit takes any model and its training images")
    manifest = Manifest.load(file)
    prompts = {group: [p for p in caption_prompts(manifest, (group,)) if p.group == group] for group in ("duplicated", "control")}
    if not all(prompts.values()):
        raise InputError(f"{checkpoint}/manifest.parquet marks no duplicated or no control images: "
                         "fine-tune with --duplicated and --controls")
    return manifest, prompts


def heldout_of(heldout_data, manifest):
    """What --heldout_data names -> Manifest or None. Under auto: the embedded held-out pictures where the model was fine-tuned on
    the embedded data, which half or more of its training images are of; no other world has some."""
    if heldout_data != "auto":
        return load_source(heldout_data, need_captions=False) if heldout_data else None
    own = sum(e.sha256 in embedded_hashes() for e in manifest) >= len(manifest) / 2
    return load_source(EMBEDDED_HELDOUT, need_captions=False) if own else None


@lru_cache(maxsize=1)
def embedded_hashes():
    """SHA-256 of the embedded training images."""
    return {e.sha256 for e in load_source(EMBEDDED["train_data"])}


def provenance(config):
    """What run.json says of samples of config.checkpoint."""
    return {"config": plain(config), "model": config.checkpoint, "versions": versions(),
            "hashes": {"model": folder_sha256(find_model(config.checkpoint))}}


def going_on_with(config):
    """What rotescope score is told beside samples of config.checkpoint that a command has left."""
    heldout = getattr(config, "heldout_data", None)
    return ["--train_data", str(Path(config.checkpoint) / "manifest.parquet"), "--output_dir", str(config.output_dir),
            *(["--heldout_data", str(heldout)] if heldout not in (None, "auto") else [])]
