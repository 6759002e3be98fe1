"""Weights from the Hugging Face hub: as safetensors only, licence and SHA-256 shown and compared with the hub's own."""
from pathlib import Path

from rotescope.common.console import say
from rotescope.common.errors import InputError
from rotescope.common.outputs import sha256


def downloaded(name, weights):
    """A hub name and its file of weights -> the folder with that file and the configs beside it. InputError where it fails."""
    from huggingface_hub import model_info, snapshot_download
    try:
        about = model_info(name, files_metadata=True)
        folder = Path(snapshot_download(name, revision=about.sha, allow_patterns=["*.json", weights]))
        expected = next(f.lfs.sha256 for f in about.siblings if f.rfilename == weights)
    except Exception as error:  # no network, no such model, no safetensors: one kind each
        raise InputError(f"no {weights} at {name}, and the hub does not give it ({error}): name a local one") from error
    if sha256(folder / weights) != expected:
        raise InputError(f"{folder / weights} is not what the hub says it is: remove it and try again")
    licence = getattr(about.card_data, "license", None) or "not stated"
    say(f"{name} from the hub\n  licence: {licence}\n  SHA-256: {expected}")
    return folder
