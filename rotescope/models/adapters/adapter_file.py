"""An adapter's file -> the updates of its layers, with an account of its keys."""
import json
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open

from rotescope.common.errors import InputError
from rotescope.models.adapters.layer_names import AdapterKey, parse_key, unread_kind
from rotescope.models.adapters.layer_updates import LayerUpdate
from rotescope.models.single_files.contents import describe_model
from rotescope.models.tensor_files import load_tensors

NUMBER_ENDS = (".alpha", ".scale", ".scalar")  # keys of numbers that go with a layer; they are not counted as weights
BUNDLED = "bundle_emb."                         # textual inversions that go with a LoRA
OPTION_OF = {"checkpoint": "--model", "embedding": "--embedding"}
FACTORS = {  # kind -> the factors that only it has
    "LoRA": ("up", "down", "mid"), "LoHa": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    "LoKr": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"), "full": ("diff",),
    "norm": ("w_norm", "b_norm")}


@dataclass(frozen=True)
class AdapterFile:
    """What a file holds.

    Attributes
    ----------
    path : Path
    updates : tuple of LayerUpdate
    parts : dict of str to tuple of str
        Of each update's name: the part of a pipeline ("" if it does not say), and the name in it.
    weights : tuple of str
        Its keys of weights, used or not.
    embeddings : dict of str to Tensor
        Textual inversions that go with it, by their keys.
    """
    path: Path
    updates: tuple[LayerUpdate, ...]
    parts: dict[str, tuple[str, str]]
    weights: tuple[str, ...]
    embeddings: dict[str, torch.Tensor]


def read_adapter(path: str | Path) -> AdapterFile:
    """The updates of a file that check_tensor_file takes. InputError, one line, for one that is not whole or is no adapter."""
    path = Path(path)
    tensors = load_tensors(path)
    if none := next((key for key, w in tensors.items() if w.is_floating_point() and not bool(w.float().isfinite().all())), None):
        raise InputError(f"{path} holds numbers that are none (NaN or infinite) in {none}: its training failed, or the copy did; "
                         "name another file")
    return updates_of(path, tensors, read_noted(path))


def updates_of(path: Path, tensors: dict[str, torch.Tensor], noted: dict | None = None) -> AdapterFile:
    """Tensors by their keys -> AdapterFile. noted: PEFT's settings, by part, where they lie beside the tensors."""
    layers: dict[str, list[AdapterKey]] = defaultdict(list)
    weights = [key for key in tensors if not key.endswith(NUMBER_ENDS) and not key.startswith(BUNDLED)]
    for key in tensors:
        if not key.startswith(BUNDLED) and (found := parse_key(key)):
            layers[f"{found.part}:{found.name}"].append(found)
    if not layers:
        kind = unread_kind(tensors)
        raise InputError(f"{path} holds {kind}, which is not read: save it as a LoRA" if kind else _what_else(path, tensors))
    updates, parts = [], {}
    for found in layers.values():
        update = _update(path, found, tensors, noted or {})
        if update:
            updates.append(update)
            parts[update.name] = found[0].part, found[0].name
    return AdapterFile(path, tuple(updates), parts, tuple(weights),
                       {key: w for key, w in tensors.items() if key.startswith(BUNDLED)})


def _what_else(path, tensors):
    about = describe_model(path)
    if about.kind in OPTION_OF:
        return f"{path} is {about.what}: name it with {OPTION_OF[about.kind]}"
    return f"{path} holds no adapter: none of its {len(tensors):,} keys is a LoRA's or LyCORIS'"


def _update(path, found, tensors, noted):
    """The keys of one layer -> its update, or None if they are numbers alone."""
    layer = next((key.layer for key in found if not key.key.endswith(NUMBER_ENDS)), None)
    if layer is None:
        return None
    if len({key.factor for key in found}) < len(found):
        twice = [key.key for key in found if sum(key.factor == other.factor for other in found) > 1]
        raise InputError(f"{path} holds {twice[0]} and {twice[1]}, two formats for one layer: copy it again, or name another")
    factors = {key.factor: tensors[key.key] for key in found}
    numbers = {name: float(factors.pop(name).float().flatten()[0]) for name in ("alpha", "scale", "scalar")
               if name in factors and factors[name].numel()}
    kind = _kind_of(path, found)
    told = None if "alpha" in numbers else alpha_noted(noted, found[0])
    alpha = numbers.get("alpha", told)
    update = LayerUpdate(layer, kind, factors, frozenset(k.key for k in found if not k.key.endswith(NUMBER_ENDS)),
                         alpha or None, _magnitude(factors), numbers.get("scalar", 1.0))
    if not update.is_whole:
        raise InputError(f"{path} lacks weights of layers of which it has others ({layer}), so it is not whole: copy it again")
    _check_factors(path, update)
    if told is not None and noted.get("rslora") and update.rank:  # α/√r, Kalajdzievski 2023, arXiv 2312.03732
        return replace(update, alpha=told * update.rank ** 0.5)
    return update


def _kind_of(path, found):
    """The keys of one layer -> its kind. InputError if they are of two, such as LoRA and LoHa: one of them would be left out in
    silence. A change of the bias goes with any, and alone it is a whole difference."""
    kinds: dict[str, str] = {}
    for key in found:
        kind = next((kind for kind, names in FACTORS.items() if key.factor in names), None)
        if kind:
            kinds.setdefault(kind, key.key)
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise InputError(f"{path} holds {first} and {second}, {one} and {other} for one layer, of which one alone could be used: "
                         "merge them where the file was made, or name another")
    return next(iter(kinds), "full" if any(key.factor == "diff_b" for key in found) else "LoRA")


def _check_factors(path, update):
    """InputError if the sizes of the factors do not fit each other; no number is computed."""
    try:
        update.delta_shape()
    except (RuntimeError, IndexError, ValueError) as error:
        sizes = ", ".join(f"{name} {' × '.join(map(str, w.shape))}" for name, w in update.factors.items())
        raise InputError(f"{path} has factors of {update.name} whose sizes do not fit each other ({sizes}): copy it "
                         "again") from error


def _magnitude(factors):
    """Takes DoRA's m out of the factors: PEFT has it for rows, LyCORIS as (out, 1, …) or (1, in, …)."""
    if "magnitude_vector" in factors:
        return factors.pop("magnitude_vector").flatten().unsqueeze(1)
    scale = factors.pop("dora_scale", None)
    return scale.unsqueeze(1) if scale is not None and scale.dim() == 1 else scale


# ----- what PEFT notes beside its tensors

def read_noted(path: Path) -> dict:
    """-> PEFT's settings by part; in the file's metadata, as diffusers writes it, or in adapter_config.json beside it."""
    try:
        with safe_open(path, "pt") as opened:
            found = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "null"))
    except ValueError:
        found = None
    if isinstance(found, dict):
        return {"parts": found, "rslora": any(v is True for k, v in found.items() if str(k).endswith("use_rslora"))}
    beside = path.parent / "adapter_config.json"
    try:
        found = json.loads(beside.read_text(encoding="utf-8")) if path.name == "adapter_model.safetensors" else None
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict):
        return {"parts": {f".{key}": value for key, value in found.items()}, "rslora": found.get("use_rslora") is True}
    return {}


def alpha_noted(noted: dict, key: AdapterKey) -> float | None:
    """PEFT's settings -> the α that they give the layer of a key, or None."""
    settings = noted.get("parts", {})
    starts = (key.layer.partition(".")[0], *(("unet", "transformer") if key.part == "denoiser" else ()), "")
    for start in starts:
        patterns = settings.get(f"{start}.alpha_pattern")
        for pattern, alpha in patterns.items() if isinstance(patterns, dict) else ():
            name = str(pattern).removeprefix("^").removesuffix("$").replace("\\.", ".")
            if key.name == name or key.name.endswith(f".{name}"):
                return float(alpha)
        if isinstance(alpha := settings.get(f"{start}.lora_alpha"), int | float):
            return float(alpha)
    return None
