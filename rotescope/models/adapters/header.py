"""What the header of an adapter's file says of its training: kohya's `ss_*`, `modelspec.*`, OneTrainer's and ai-toolkit's notes.

A header is a claim, and may hold anything: what cannot be read is named, and never stops a run.
"""
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rotescope.common.wording import shown_safely
from rotescope.models.tensor_files import read_tensor_file

MOST_FOLDERS, MOST_TAGS = 10_000, 100_000  # that are read of one header
LARGEST = 100_000                          # pixels a side
GUESSES = 5                                # triggers that are named
SHARE = 0.9                                # of a folder's captions that a trigger stands in
NUMBER = re.compile(r"^\d+_")


@dataclass(frozen=True)
class TrainingFolder:
    """A folder that a file was trained on: its name, how often an epoch shows each picture, and how many pictures it holds."""
    name: str
    repeats: int | None
    pictures: int | None
    is_regularization: bool = False


@dataclass(frozen=True)
class AdapterHeader:
    """What a file says of its training; None or empty where it says nothing.

    Attributes
    ----------
    folders : tuple of TrainingFolder
        The trained ones, and those of regularisation.
    resolution : tuple of int, optional
        (width, height) in pixels.
    buckets : dict of tuple of int to int
        (width, height) -> how many pictures were trained in that shape.
    clip_skip, max_token_length : int, optional
        As kohya's scripts count them.
    tags : dict of str to dict of str to int
        Of each folder: how many captions hold the tag.
    triggers : tuple of str
        Words that may call what was learned: a guess, unless `modelspec.trigger_phrase` says them.
    base_model : str, optional
        As the trainer named it.
    base_sha256 : str, optional
    family : str, optional
        `ss_base_model_version` or `modelspec.architecture`.
    is_v2, is_sdxl : bool, optional
    prediction_type : str, optional
        `epsilon` or `v_prediction`.
    zero_terminal_snr : bool
    network_module, network_args, network_dim, network_alpha
        What trained it.
    epochs, steps : int, optional
    modelspec : dict of str to str
    unreadable : tuple of str
        Entries that hold something else than they should.
    """
    folders: tuple[TrainingFolder, ...] = ()
    resolution: tuple[int, int] | None = None
    buckets: Mapping[tuple[int, int], int] = field(default_factory=dict)
    clip_skip: int | None = None
    max_token_length: int | None = None
    tags: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    triggers: tuple[str, ...] = ()
    base_model: str | None = None
    base_sha256: str | None = None
    family: str | None = None
    is_v2: bool | None = None
    is_sdxl: bool | None = None
    prediction_type: str | None = None
    zero_terminal_snr: bool = False
    network_module: str | None = None
    network_args: Mapping[str, Any] = field(default_factory=dict)
    network_dim: int | None = None
    network_alpha: float | None = None
    epochs: int | None = None
    steps: int | None = None
    modelspec: Mapping[str, str] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()

    @property
    def trained(self) -> tuple[TrainingFolder, ...]:
        """The folders without those of regularisation."""
        return tuple(folder for folder in self.folders if not folder.is_regularization)

    @property
    def pictures(self) -> int | None:
        """How many pictures it was trained on, regularisation left out; None where that is not said."""
        counts = [folder.pictures for folder in self.trained if folder.pictures is not None]
        return sum(counts) or None

    @property
    def shown(self) -> int | None:
        """How many pictures an epoch shows, repeats included; None where some folder's number is not said."""
        counts = [(folder.repeats, folder.pictures) for folder in self.trained]
        known = [repeats * pictures for repeats, pictures in counts if repeats is not None and pictures is not None]
        return sum(known) if known and len(known) == len(counts) else None

    def lines(self) -> list[str]:
        """What it says, in a line or two; none where it says nothing."""
        found = []
        if self.trained:
            shown = ", ".join(_folder_words(folder) for folder in self.trained[:3])
            more = f" and {len(self.trained) - 3:,} more folders" if len(self.trained) > 3 else ""
            found.append(f"its header says: trained on {shown}{more}")
        said = [f"at {self.resolution[0]} × {self.resolution[1]}" if self.resolution else "",
                f"{len(self.buckets)} buckets" if len(self.buckets) > 1 else "",
                f"clip skip {self.clip_skip}" if self.clip_skip else "",
                f"captions of {self.max_token_length} tokens" if self.max_token_length else "", self.prediction_type or "",
                f"base {self.base_model}" if self.base_model else self.family or "",
                f"trigger: {', '.join(self.triggers)}" if self.triggers else "",
                f"unreadable: {', '.join(self.unreadable)}" if self.unreadable else ""]
        if any(said):
            found.append(("its header says: " if not found else "  ") + ", ".join(filter(None, said)))
        return [shown_safely(line) for line in found]


def _folder_words(folder: TrainingFolder) -> str:
    count = "pictures" if folder.pictures is None else f"{folder.pictures:,} pictures"
    return f"{count} × {folder.repeats} ({folder.name})" if folder.repeats is not None else f"{count} ({folder.name})"


def read_header(path: str | Path) -> AdapterHeader:
    """The header of a safetensors file, and none of its tensors -> AdapterHeader. InputError for what is no such file."""
    return header_of(read_tensor_file(path).metadata)


def header_of(metadata: Mapping[str, str]) -> AdapterHeader:
    """A file's metadata, text by key -> AdapterHeader."""
    notes = _Notes(metadata)
    folders = _folders(notes)
    tags = {str(name): {str(tag): count for tag, count in list(found.items())[:MOST_TAGS] if _is_count(count)}
            for name, found in list(notes.table("ss_tag_frequency").items())[:MOST_FOLDERS] if isinstance(found, dict)}
    spec = {key: text for key, text in metadata.items() if key.startswith("modelspec.")}
    kind = spec.get("modelspec.prediction_type") or ("v_prediction" if notes.flag("ss_v_parameterization") else None)
    family = notes.text("ss_base_model_version") or spec.get("modelspec.architecture")
    return AdapterHeader(
        folders, _size(notes.text("ss_resolution") or spec.get("modelspec.resolution"), notes), _buckets(notes),
        notes.whole("ss_clip_skip"), notes.whole("ss_max_token_length"), tags,
        _triggers(spec, folders, tags), notes.text("ss_sd_model_name"),
        notes.text("ss_new_sd_model_hash"), family, notes.flag("ss_v2"), "xl" in family.lower() if family else None,
        {"v": "v_prediction"}.get(kind or "", kind), bool(notes.flag("ss_zero_terminal_snr")), notes.text("ss_network_module"),
        notes.table("ss_network_args"), notes.whole("ss_network_dim"), notes.number("ss_network_alpha"),
        notes.whole("ss_num_epochs"), notes.whole("ss_steps"), spec, tuple(dict.fromkeys(notes.wrong)))


class _Notes:
    """Metadata read as one kind or another; what is of another kind is listed in `wrong`."""

    def __init__(self, metadata):
        self.metadata, self.wrong = metadata, []

    def text(self, key):
        found = self.metadata.get(key)
        return None if found in (None, "", "None", "null") else found

    def table(self, key):
        return self._read(key, lambda text: _checked(json.loads(text), dict)) or {}

    def whole(self, key):
        return self._read(key, lambda text: int(float(text)))

    def number(self, key):
        return self._read(key, lambda text: _checked(float(text), float))

    def flag(self, key):
        return self._read(key, lambda text: {"true": True, "1": True, "false": False, "0": False}[text.lower()])

    def _read(self, key, kind):
        text = self.text(key)
        try:
            return None if text is None else kind(text)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            self.wrong.append(key)
            return None


def _checked(value, kind):
    if not isinstance(value, kind) or (kind is float and not math.isfinite(value)):
        raise ValueError(value)
    return value


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _folders(notes):
    """Of `ss_dataset_dirs` and `ss_reg_dataset_dirs`, or else of `ss_datasets`, which names the same with its subsets."""
    found = [_folder(name, said, key == "ss_reg_dataset_dirs", notes, key) for key in ("ss_dataset_dirs", "ss_reg_dataset_dirs")
             for name, said in list(notes.table(key).items())[:MOST_FOLDERS]]
    if not found and notes.text("ss_datasets"):
        sets = notes._read("ss_datasets", lambda text: _checked(json.loads(text), list)) or []
        subsets = [subset for one in sets if isinstance(one, dict) for subset in one.get("subsets") or ()
                   if isinstance(subset, dict)]
        found = [_folder(subset.get("image_dir") or subset.get("metadata_file") or "a folder",
                         {"n_repeats": subset.get("num_repeats"), "img_count": subset.get("img_count")},
                         subset.get("is_reg") is True, notes, "ss_datasets") for subset in subsets[:MOST_FOLDERS]]
    return tuple(folder for folder in found if folder is not None)


def _folder(name: object, said: Any, is_regularization: bool, notes: Any, key: str) -> TrainingFolder | None:
    counts: list[Any] = [said.get("n_repeats"), said.get("img_count")] if isinstance(said, dict) else ["?"]
    if not all(count is None or _is_count(count) for count in counts):
        notes.wrong.append(key)
        return None
    return TrainingFolder(str(name), counts[0], counts[1], is_regularization)


def _size(text, notes):
    """`512`, `(512, 768)` or `1024x1024` -> (width, height)."""
    numbers = [int(n) for n in re.findall(r"-?\d{1,9}", (text or "")[:99])][:2]
    if text and not (numbers and all(0 < n <= LARGEST for n in numbers)):
        notes.wrong.append("ss_resolution")
        return None
    return (numbers[0], numbers[-1]) if numbers else None


def _buckets(notes):
    """`ss_bucket_info`: {"buckets": {"0": {"resolution": [w, h], "count": n}}}."""
    found: Counter[tuple[int, int]] = Counter()
    buckets = notes.table("ss_bucket_info").get("buckets")
    for bucket in list(buckets.values())[:MOST_FOLDERS] if isinstance(buckets, dict) else ():
        said = [*(bucket.get("resolution") or ()), bucket.get("count")] if isinstance(bucket, dict) else []
        if len(said) == 3 and all(map(_is_count, said)):
            found[said[0], said[1]] += said[2]
        else:
            notes.wrong.append("ss_bucket_info")
    return dict(found)


def _triggers(spec, folders, tags):
    """What modelspec says; else a folder's class words, or tags that nearly all captions of a folder hold."""
    if said := spec.get("modelspec.trigger_phrase"):
        return (said,)
    found = [NUMBER.sub("", folder.name) for folder in folders if NUMBER.match(folder.name) and not folder.is_regularization]
    pictures = {folder.name: folder.pictures for folder in folders}
    for name, counts in tags.items():
        least = SHARE * (pictures.get(name) or max(counts.values(), default=1))
        found += [tag.strip() for tag, n in sorted(counts.items(), key=lambda item: -item[1])[:GUESSES] if n >= least]
    return tuple(dict.fromkeys(filter(None, found)))[:GUESSES]
