"""What a model's folder in diffusers' layout is, by its configurations and the headers of its files."""
import json
from math import prod
from pathlib import Path
from typing import Any

from rotescope.common.errors import InputError
from rotescope.models.model_families import guess_family
from rotescope.models.model_files import read_index
from rotescope.models.single_files.contents import ModelDescription
from rotescope.models.tensor_files import read_tensor_file

PART_WORDS = {"unet": "denoiser", "transformer": "denoiser", "vae": "VAE", "text_encoder": "text encoder",
              "text_encoder_2": "second text encoder", "text_encoder_3": "third text encoder"}


def describe_folder(folder: str | Path) -> ModelDescription:
    """A folder in diffusers' layout -> what it is. InputError, one line, if it is none or a file of it is damaged."""
    folder = Path(folder)
    index = read_index(folder)
    if not index:
        raise InputError(f"no model at {folder}: name a folder in diffusers' layout, with a model_index.json")
    shapes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, int] = {}
    formats: list[str] = []
    for part, word in PART_WORDS.items():
        for file in sorted((folder / part).glob("*.safetensors")) if part in index else ():
            table = read_tensor_file(file)
            parts[word] = parts.get(word, 0) + sum(map(prod, table.shapes.values()))
            formats += table.formats.values()
            if word == "denoiser":
                shapes |= {key.removesuffix(".weight"): shape for key, shape in table.shapes.items()}
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    first = shapes.get("conv_in", ())
    return ModelDescription(
        folder, "folder", guess_family(shapes), parts, tuple(sorted(set(formats), key=formats.count, reverse=True)),
        scheduler.get("prediction_type"), scheduler.get("rescale_betas_zero_snr") is True, first[1] if len(first) == 4 else None,
        str(index.get("_class_name", "")))


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
