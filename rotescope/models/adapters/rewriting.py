"""An adapter's file with some of its updates changed, in its own format: the same keys, ranks, α and notes wherever they can be.

A LoRA keeps its keys, a whole difference too. What is no product of two factors (LoHa, LoKr) keeps them only where it is
scaled; otherwise its layer becomes a plain LoRA of as many ranks as ΔW has, in the file's way of naming.
"""
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from rotescope.common.errors import RunError
from rotescope.models.adapters.adapter_file import AdapterFile, read_adapter
from rotescope.models.adapters.layer_names import parse_key
from rotescope.models.adapters.layer_updates import LayerUpdate
from rotescope.models.adapters.low_rank import NEGLIGIBLE, LowRankUpdate, channels_of, low_rank_of
from rotescope.models.tensor_files import load_tensors, read_tensor_file

PEFT_NAME, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
LINEAR = {"LoRA": ("up", "up_bias"), "LoHa": ("hada_w1_a",), "LoKr": ("lokr_w1", "lokr_w1_a"), "full": ("diff",),
          "norm": ("w_norm",)}     # factors in which ΔW is linear, of which one is scaled
BIASES = ("diff_b", "b_norm")
LARGEST_ERROR = 0.02               # of ‖ΔW‖, of what was written: eight bits of a number's fraction are .004


def save_rewritten(found: AdapterFile, before: Mapping[str, LowRankUpdate], after: Mapping[str, LowRankUpdate], folder: Path,
                   name: str, note: str = "") -> tuple[Path, int]:
    """Write `found` into `folder` as NAME.safetensors, or, where PEFT's settings lie beside it, as the folder NAME with both.

    Parameters
    ----------
    found : AdapterFile
    before, after : dict of str to LowRankUpdate
        By the layers' names; a layer whose object is the same in both is left to the bit.
    folder : Path
    name : str
    note : str
        For the file's own notes, under `rotescope.repair`.

    Returns
    -------
    (Path, int)
        The file, and how many layers became plain LoRAs.

    Raises
    ------
    RunError
        If what was written is not what was meant.
    """
    tensors, plain = rewritten_tensors(found, before, after)
    settings = found.path.parent / PEFT_SETTINGS
    in_folder = found.path.name == PEFT_NAME and settings.is_file()
    file = folder / name / PEFT_NAME if in_folder else folder / f"{name}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    if in_folder:
        shutil.copyfile(settings, file.parent / PEFT_SETTINGS)
    metadata = {"format": "pt"} | read_tensor_file(found.path).metadata | {"rotescope.repair": note}
    save_file({key: w.contiguous() for key, w in tensors.items()}, file, metadata=metadata)
    _check_written(file, after)
    return file, plain


def rewritten_tensors(found: AdapterFile, before: Mapping[str, LowRankUpdate],
                      after: Mapping[str, LowRankUpdate]) -> tuple[dict[str, torch.Tensor], int]:
    """-> the tensors of the file by their keys, and how many layers became plain LoRAs."""
    tensors, plain = load_tensors(found.path), 0
    for update in found.updates:
        old, new = before[update.name], after[update.name]
        if new is old:
            continue
        keys = {parsed.factor: key for key in update.keys if (parsed := parse_key(key))}
        if new.up is old.up and new.down is old.down:
            _scale(tensors, keys, update, new.scale / old.scale)
        elif update.kind in ("LoHa", "LoKr"):
            _replace_by_lora(tensors, update, new)
            plain += 1
        else:
            _put(tensors, keys, update, new, new.scale / old.scale)
    return tensors, plain


def _scale(tensors, keys, update, ratio):
    """Multiply ΔW, and what goes to the bias, by a number."""
    linear = LINEAR[update.kind] if update.kind == "LoRA" else [name for name in LINEAR[update.kind] if name in keys][:1]
    for key in (keys[name] for name in (*linear, *BIASES) if name in keys):
        tensors[key] = (tensors[key].float() * ratio).to(tensors[key].dtype)


def _put(tensors, keys, update, new, ratio):
    """New numbers in the places of a LoRA's `up`, of a whole difference, or of a norm."""
    factor = LINEAR[update.kind][0]
    key = keys[factor]
    numbers = new.up * ratio if factor == "up" else new.delta()
    tensors[key] = numbers.reshape(tensors[key].shape).to(tensors[key].dtype)


def _replace_by_lora(tensors, update, new):
    kernel = update.delta_shape()[1:]
    old = [key for key in tensors if (parsed := parse_key(key)) and parsed.layer == update.name]
    dtype = next(tensors[key].dtype for key in old if key in update.keys)
    for key in old:
        del tensors[key]
    found = channels_of(new)
    rank = max(1, int((found.values > NEGLIGIBLE * found.values[0]).sum())) if found.values[0] > 0 else 1
    ends = (".lora_down.weight", ".lora_up.weight") if "." not in update.name else (".lora_A.weight", ".lora_B.weight")
    up = found.left[:, :rank] * found.values[:rank]
    tensors[update.name + ends[0]] = found.right[:rank].reshape(rank, *kernel).to(dtype)
    tensors[update.name + ends[1]] = up.reshape(len(up), rank, *[1] * (len(kernel) - 1)).to(dtype)
    tensors[update.name + ".alpha"] = torch.tensor(float(rank))


def _check_written(file: Path, after: Mapping[str, LowRankUpdate]) -> None:
    """RunError if a layer of the file, read again, does another thing than it should."""
    written: dict[str, LayerUpdate] = {update.name: update for update in read_adapter(file).updates}
    for name, meant in after.items():
        delta = meant.delta()
        error = float((low_rank_of(written[name]).delta() - delta).norm()) if name in written else float("inf")
        if not error <= LARGEST_ERROR * max(float(delta.norm()), 1e-6):
            raise RunError(f"{name} of the repaired file is not what was computed (it differs by {error:.3g}): this is a fault "
                           "of rotescope; please report it with the file's format")
