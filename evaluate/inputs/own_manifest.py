"""What a fine-tune left of its training images: a manifest beside the model, or counts in the LoRA's header."""
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.datasets.manifest import Manifest
from rotescope.models.adapters.header import read_header
from rotescope.models.model_files import lora_names, lora_strength


def manifest_beside(model, lora=None) -> Manifest | None:
    """Of the LoRA if there is one, for its base was trained on other data; None where none lies there, or none that can be read.

    model: a folder or file, or a name on the hub. lora: files or folders, as --lora has them, or nothing; the first counts.
    """
    loras = lora_names(lora)
    named = Path(lora_strength(loras[0])[0] if loras else str(model or ""))
    folder = named if named.is_dir() else named.parent
    file = folder / "manifest.parquet"
    if not (loras or model) or not named.exists() or not file.is_file():
        return None
    try:
        return Manifest.load(file)
    except InputError:
        return None


def header_counts(file) -> tuple[int, float | None] | None:
    """What the header of a LoRA's file counts, as kohya's scripts write it -> training pictures, and showings of an epoch, which
    is None where some folder's repeats are not said; None where it counts no pictures."""
    try:
        header = read_header(file)
    except InputError:
        return None
    return (header.pictures, header.shown) if header.pictures else None


def overlap(one: Manifest, other: Manifest) -> tuple[int, int]:
    """-> how many different pictures both have, byte for byte, and how many the smaller one has."""
    first, second = ({e.sha256 for e in manifest} for manifest in (one, other))
    return len(first & second), min(len(first), len(second))
