"""What files and folders are taken for, in up to three lines each: a model, an adapter, training data, and whether they agree."""
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rotescope.common.errors import InputError
from rotescope.common.wording import exact_number
from rotescope.datasets.readers.description import DataDescription, describe_data
from rotescope.datasets.trainers.data_options import DataOptions, data_options
from rotescope.models.adapters.description import AdapterDescription, describe_adapter
from rotescope.models.model_files import LORA_FILES, find_lora, lora_names, lora_strength, read_index
from rotescope.models.single_files.contents import ModelDescription, describe_model
from rotescope.models.tensor_files import PICKLES

WEIGHTS = (".safetensors", ".gguf", *PICKLES)   # how the names of files of weights end
Description = ModelDescription | AdapterDescription | DataDescription


def describe_path(path: str | Path, options: DataOptions | None = None) -> Description:
    """A file or folder -> what it is.

    Parameters
    ----------
    path : str or Path
        A model, an adapter, an embedding or training data, as the commands take them.
    options : DataOptions, optional
        How training data are read.

    Raises
    ------
    InputError
        If nothing is there, or it is of no known kind, or damaged.
    """
    place = Path(lora_strength(str(path))[0])
    if not place.exists():
        raise InputError(f"nothing lies at {path}: name a model, a LoRA or training data on this disk")
    if place.is_dir() and read_index(place):
        return describe_model(place)
    if place.is_dir() and any((place / name).is_file() for name in LORA_FILES):
        return describe_adapter(find_lora(place))
    if place.suffix.lower() in WEIGHTS and not place.is_dir():
        about = describe_model(place)
        if about.kind == "unknown":
            raise InputError(f"{path} holds weights of a kind that is not known here: name a checkpoint, a LoRA or an embedding")
        return describe_adapter(place) if about.kind == "adapter" else about
    return _data(place, options or DataOptions())


def _data(place, options):
    found = describe_data(place, options)
    if not found.pictures:
        weights = sorted(f.name for f in place.glob("*.safetensors")) if place.is_dir() else []
        held = f", but weights ({', '.join(weights[:3])}): name one of them" if weights else ": name a folder of pictures"
        raise InputError(f"{place} holds no picture{held}")
    return found


def agreement_line(adapter: AdapterDescription, data: DataDescription) -> str | None:
    """Whether a LoRA's header and the data count the same pictures, and as many showings; None where it counts none."""
    header = adapter.header
    if header.pictures is None:
        return None
    told = f"the header of {adapter.path.name} counts {header.pictures:,} pictures, and the data hold {data.pictures:,}"
    if header.pictures != data.pictures:
        return f"{told}: they disagree"
    shown = header.shown
    if shown is None:
        return f"{told}: they agree"
    if shown == data.shown:
        return f"{told}, both shown {exact_number(shown)} times in an epoch: they agree"
    return (f"{told}, but it counts {exact_number(shown)} showings of an epoch and the data {exact_number(data.shown)}: they "
            "agree in pictures, not in repeats")


def agreement_lines(found):
    """Descriptions -> a line for each adapter and data set among them."""
    adapters = [d for d in found if isinstance(d, AdapterDescription)]
    data = [d for d in found if isinstance(d, DataDescription)]
    return [line for a in adapters for d in data if (line := agreement_line(a, d))]


def agreement_with_data(config):
    """Whether the headers of an audit's LoRAs agree with its training data, a line each; nothing of what cannot be described,
    which its readers refuse."""
    found = []
    for name in (*lora_names(config.lora), config.train_data):
        try:
            found.append(describe_path(name, data_options(config)))
        except InputError:
            continue
    return agreement_lines(found)


def as_plain(description: Description) -> dict[str, Any]:
    """For JSON: its kind, its fields, paths as text."""
    kind = {ModelDescription: "model", AdapterDescription: "adapter", DataDescription: "data"}
    return {"is": kind[type(description)]} | json.loads(json.dumps(_texts(asdict(description))))


def _texts(value):
    """Paths, tuples and tables with other keys than texts -> what JSON has."""
    if isinstance(value, dict):
        return {"×".join(map(str, k)) if isinstance(k, tuple) else str(k): _texts(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_texts(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
