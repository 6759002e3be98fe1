"""An adapter on a pipeline, with an account of every key of its file: what attaches to nothing changes no image, in silence."""
from collections import Counter
from pathlib import Path
from typing import Any

from rotescope.common.console import say
from rotescope.common.errors import InputError
from rotescope.models.adapters.adapter_file import AdapterFile, read_adapter
from rotescope.models.adapters.attachment import attach, check_packed
from rotescope.models.adapters.description import shapes_of
from rotescope.models.adapters.embeddings import add_bundled
from rotescope.models.adapters.layer_index import LayerIndex, PipelineLayer
from rotescope.models.adapters.layer_names import format_of
from rotescope.models.adapters.layer_updates import LayerUpdate
from rotescope.models.model_families import guess_family

NAMED = 3  # of the keys that are not used


def attach_lora(pipe: Any, file: Path, model: str | Path, allow_unused: bool = False, strength: float = 1.0) -> AdapterFile:
    """Attach the adapter `file`, whatever its format, to the pipeline of the model `model`.

    Parameters
    ----------
    pipe : DiffusionPipeline
    file : Path
        A safetensors file.
    model : str or Path
        The model's name, for messages.
    allow_unused : bool
        Go on though some of its keys attach to nothing; they are then named on stderr.
    strength : float
        What the change is multiplied by.

    Raises
    ------
    InputError
        If it is another model's, is not whole, has to be added to packed weights, or if a key of it is not used and that is
        not allowed.
    """
    found = read_adapter(file)
    placed = place_updates(pipe, found)
    unused = sorted(set(found.weights) - _keys(placed))
    if len(unused) == len(found.weights):
        raise InputError(f"no weight of {file} belongs to {model}: it is a LoRA of another model ({_family(found)}), or of a "
                         "format that is not read")
    if unused:  # the libraries only remark on it
        more = f" and {len(unused) - NAMED:,} more" if len(unused) > NAMED else ""
        told = (f"{len(unused):,} of the {len(found.weights):,} weights of {file} attach to nothing in {model}: "
                f"{', '.join(unused[:NAMED])}{more}{_other_denoiser(found, placed)}")
        if not allow_unused:
            raise InputError(f"{told}; name a LoRA of this model, or pass --allow_unused_keys to go on with the others")
    check_packed(placed)
    try:
        attach(pipe, placed, strength)
    except InputError as error:
        raise InputError(f"{file} is a LoRA of another model ({_family(found)}): its layers have other sizes than those of "
                         f"{model} ({error})") from error
    if format_of(found.weights) == "PEFT" and any(update.rank and update.alpha is None for update in found.updates):
        say(f"{file} does not say its alpha, and no adapter_config.json is beside it: it is taken as the rank")
    add_bundled(pipe, found.embeddings, Path(file))
    if unused:
        say(f"warning: {told}")
    return found


def place_updates(pipe: Any, found: AdapterFile) -> list[tuple[PipelineLayer, LayerUpdate]]:
    """-> each update that a layer of the pipeline takes, with that layer. InputError if a file names a layer twice."""
    index, placed = LayerIndex(pipe), []
    for update in found.updates:
        layers = index.find(*found.parts[update.name])
        placed += [(layer, update.of_rows(layer.rows) if layer.rows else update) for layer in layers]
    homes = Counter((layer.component, layer.name) for layer, _ in placed)
    if twice := next((home for home, n in homes.items() if n > 1), None):
        names = [update.name for layer, update in placed if (layer.component, layer.name) == twice]
        raise InputError(f"{found.path} holds {names[0]} and {names[1]}, two formats for one layer: copy it again, or name "
                         "another")
    return placed


def _keys(placed):
    return frozenset[str]().union(*(update.keys for _, update in placed))


def _other_denoiser(found, placed):
    """Of a file whose layers of a denoiser all attach to nothing: what it is."""
    own = {update.name for update in found.updates if found.parts[update.name][0] == "denoiser"}
    return f", and none of the denoiser's attaches: {_family(found)}" if own and not own & {u.name for _, u in placed} else ""


def _family(found):
    """What the file is a LoRA of, by its layers."""
    return f"it would fit {guess_family(shapes_of(found))}"
