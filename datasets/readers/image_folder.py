"""Hugging Face's imagefolder: metadata.csv, .jsonl or .parquet with a `file_name` and a caption column, at
the top or deeper.

    metadata.jsonl + a.jpg            {"file_name": "a.jpg", "text": "a cat"}
    data/train/metadata.jsonl + a.jpg and data/test/metadata.jsonl + b.jpg    of several splits, train
"""
import csv
import json
import sys
from pathlib import Path

import pyarrow as pa

from rotescope.common.errors import InputError
from rotescope.common.parquet import read_table
from rotescope.datasets.images.image_bytes import locate
from rotescope.datasets.readers.formats import CAPTION_COLUMNS, several
from rotescope.datasets.trainers.config_paths import file_in, is_file_name

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")
FILE_COLUMNS = ("file_name", "image", "file")


def metadata_file(folder: Path) -> Path | None:
    """The one in a folder that counts, or None."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def nested_metadata(folder: Path, files: list[Path]) -> tuple[list[Path], list[Path]]:
    """The metadata files below a folder that are trained on, and those of other splits.

    Parameters
    ----------
    folder : Path
        The whole.
    files : list of Path
        Every file under it.

    Returns
    -------
    tuple of list
        Of several splits those of train, or of the only one; a folder that bears no split's name is no split.

    Raises
    ------
    InputError
        If there are several splits and none is train.
    """
    found = [f for home in sorted({f.parent for f in files if f.name in NAMES}) if (f := metadata_file(home))]
    split_of = {f: _split_in(f.parent.relative_to(folder).parts) for f in found}
    splits = sorted({s for s in split_of.values() if s})
    if len(splits) < 2:
        return found, []
    wanted = next((s for s in ("train", "training") if s in splits), None)
    if not wanted:
        raise InputError(f"{locate(folder, None)} has the splits {', '.join(splits)}: name the folder of "
                         "the one to train on")
    used = [f for f in found if split_of[f] in (wanted, "")]
    return used, [f for f in found if f not in used]


def _split_in(parts):
    return next((part.lower() for part in parts if part.lower() in SPLITS), "")


def from_metadata(file):
    """A metadata file -> (captions, file, None) of each picture that it names, from its own folder; or an
    InputError."""
    for number, row in enumerate(_rows_of(file), 1):
        name = next((row[c] for c in FILE_COLUMNS if row.get(c)), None) if isinstance(row, dict) else None
        if not is_file_name(name):
            yield InputError(f"{locate(file, None)} names no image in entry {number}: give it a `file_name`")
            continue
        try:
            caption = next((row[c] for c in CAPTION_COLUMNS if c in row), None)
            yield several(caption), file_in(file.parent, name), None
        except InputError as error:
            yield InputError(f"{locate(file, None)}, entry {number}: {error}")


def _rows_of(file):
    csv.field_size_limit(sys.maxsize)
    try:
        if file.suffix == ".parquet":
            return read_table(file).to_pylist()
        with open(file, newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            if file.suffix == ".csv":
                return list(csv.DictReader(stream))
            return [_json(line) for line in stream if line.strip()]
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise InputError(f"{locate(file, None)} cannot be read ({error}): mend it") from error


def _json(line):
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
