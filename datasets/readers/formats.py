"""Readers of what lists many captioned images: Parquet, tar, Hugging Face data sets.

Each yields (captions, file, row) for an image, row None for an image file of its own, and an InputError for an entry that it
cannot make out; it raises one where the whole cannot be read.
"""
import json
import re
from pathlib import Path

import pyarrow as pa

from rotescope.common.errors import InputError
from rotescope.common.parquet import parquet_file
from rotescope.datasets.images.image_bytes import IMAGES, arrow_table, locate, read_encoded, tar_members
from rotescope.datasets.trainers.config_paths import file_in, is_file_name

CAPTION_COLUMNS = ("caption", "captions", "text", "prompt")   # the first that is there counts
TAR_CAPTIONS = ("txt", "caption", "json")   # in order of preference


def several(caption):
    """What a caption column holds, text or a list of texts -> tuple without empty ones; what is no text counts as empty."""
    captions = caption if isinstance(caption, (list, tuple)) else [caption]
    texts = (c.encode(errors="replace").decode().strip() for c in captions if isinstance(c, str))  # no half of a character
    return tuple(c for c in texts if c)


# ----- Parquet and Arrow

def from_parquet(file):
    try:
        table = parquet_file(file)
        columns = _columns(table.schema_arrow.names, file)
        yield from _from_batches(table.iter_batches(columns=columns), file)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{locate(file, None)} cannot be read as Parquet ({error}): mend or remove it") from error


def _columns(names, file):
    if "image" not in names:
        raise InputError(f"{locate(file, None)} has no column `image` (it has {', '.join(names)}): name it so")
    return ["image", *[c for c in CAPTION_COLUMNS if c in names][:1]]


def _from_batches(batches, file):
    """Record batches -> (captions, file, row); an image kept as a path alone is a plain file, from the table's folder.

    Hugging Face writes the absolute path of a local picture, and that is followed; a relative one must not leave the folder.
    """
    row = 0
    for batch in batches:
        text = next((c for c in batch.schema.names if c != "image"), None)  # a Parquet reader keeps the file's own order
        captions = batch.column(text).to_pylist() if text else [None] * batch.num_rows
        for cell, caption in zip(batch.column("image"), captions, strict=True):
            yield _table_entry(cell.as_py(), several(caption), file, row)
            row += 1


def _table_entry(cell, captions, file, row):
    """-> (captions, file, row), row None for a plain file; or an InputError. Either of bytes and path may be left out."""
    struct = cell if isinstance(cell, dict) else {"path": cell} if isinstance(cell, str) else {"bytes": cell}
    if struct.get("bytes"):
        return captions, file, row
    path = struct.get("path")
    if not path or not is_file_name(path):
        return InputError(f"{locate(file, row)} holds neither an image nor a file's name: give it one or leave it out")
    try:
        return captions, Path(path) if Path(path).is_absolute() else file_in(Path(file).parent, path), None
    except InputError as error:
        return InputError(f"{locate(file, row)}: {error}")


# ----- Hugging Face

def from_saved_dataset(folder):
    """What Hugging Face's save_to_disk wrote; of a DatasetDict, the split `train` or the only one."""
    try:
        if (folder / "dataset_dict.json").exists():
            folder = folder / _split(json.loads((folder / "dataset_dict.json").read_text())["splits"], folder)
        shards = json.loads((folder / "state.json").read_text())["_data_files"]
        yield from _from_arrow([folder / shard["filename"] for shard in shards])
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise InputError(f"{folder} cannot be read as a saved data set ({error}): save it again") from error


def from_hub(name):
    """A data set on Hugging Face's hub, or in its cache, by name; of several splits `train`, or the only one.

    The library checks what it downloads; code in a data set is never run, as `datasets` 4 knows none.
    """
    import datasets as hf_datasets
    try:
        splits = hf_datasets.load_dataset(name)
    except Exception as error:  # no network, no such data set, no access: one kind each
        raise InputError(f"no data at {name}, and the hub does not give it ({error}): name a local folder") from error
    yield from _from_arrow([Path(shard["filename"]) for shard in splits[_split(list(splits), name)].cache_files])


def _split(splits, where):
    if "train" not in splits and len(splits) != 1:
        raise InputError(f"{where} has the splits {', '.join(splits)}: save the one to train on by itself")
    return "train" if "train" in splits else splits[0]


def _from_arrow(files):
    for file in files:
        table = arrow_table(str(file), file.stat().st_mtime_ns)
        yield from _from_batches(table.select(_columns(table.column_names, file)).to_batches(), file)


# ----- WebDataset

def from_tar(file):
    """The samples of an uncompressed tar: files that share a name up to its first dot."""
    members, early = tar_members(str(file), file.stat().st_mtime_ns)
    samples = {}
    for row, (name, _, _) in enumerate(members):
        key, kind = re.fullmatch(r"((?:.*/)?[^./]*)\.?([^/]*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
        if samples.setdefault(key, {}).setdefault(kind.lower(), row) != row:
            yield InputError(f"{name!r} is in {locate(file, None)} twice: the second is left out")
    for key, parts in samples.items():
        images = [row for kind, row in parts.items() if f".{kind.rpartition('.')[2]}" in IMAGES]
        kind = next((k for k in TAR_CAPTIONS if k in parts), None)
        if kind and not images:
            yield InputError(f"{key!r} in {locate(file, None)} has a caption and no image: leave it out")
        for row in images:
            yield several(_tar_caption(file, kind, parts[kind]) if kind else None), file, row
    if early or not members:
        yield InputError(f"{locate(file, None)} is no whole tar ({early or 'it is empty'}): copy it again, uncompressed")


def _tar_caption(file, kind, row):
    """Text, or the caption of a JSON object; None if it is neither."""
    try:
        text = read_encoded(str(file), row).decode("utf-8-sig")
        about = json.loads(text) if kind == "json" else {"caption": text}
        return next((about[c] for c in CAPTION_COLUMNS if c in about), None)
    except (ValueError, TypeError):
        return None
