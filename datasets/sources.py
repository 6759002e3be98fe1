"""Whatever holds captioned images -> Manifest, every image decoded once so that nothing breaks in mid-training.

    manifest.parquet                    our own, as rotescope prepare or a fine-tuned checkpoint has it
    data.parquet                        columns `image` (Hugging Face's struct, or bytes) and `caption`, `captions` or `text`
    folder with metadata.csv / .jsonl   `file_name` and a caption column, as Hugging Face's imagefolder
    folder with image.png + image.txt   one caption a line
    folder of Parquet files, or what `Dataset.save_to_disk` wrote
"""
import csv
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rotescope.datasets.records import Manifest, arrow_table, decode, identify, read_encoded
from rotescope.errors import InputError

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
CAPTION_COLUMNS = ("caption", "captions", "text")


def load_source(path, need_captions=True):
    """A file or folder -> Manifest, checked.

    Raises InputError that names the first missing, broken or captionless image and counts the others.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"no data at {path}: name a folder of captioned images, a Parquet file or a manifest")
    if path.is_file() and _is_manifest(path):
        manifest = Manifest.load(path)
        _check(manifest, lambda example: example.open())
        return manifest
    found = [(c, str(file), row) for c, file, row in _reader(path)(path)]
    if not found:
        raise InputError(f"{path} holds no images: name a folder of captioned images, a Parquet file or a manifest")
    if need_captions:
        _check(found, _check_captions)
    hashes = _check(found, _decoded_hash)
    return identify([(*example, sha) for example, sha in zip(found, hashes, strict=True)])


def _reader(path):
    if path.is_file():
        if path.suffix == ".parquet":
            return _from_parquet
        raise InputError(f"{path} is neither a folder nor a Parquet file: name one of these")
    names = {p.name for p in path.iterdir()}
    if "dataset_dict.json" in names or "state.json" in names:
        return _from_saved_dataset
    if names & {"metadata.csv", "metadata.jsonl"}:
        return _from_metadata
    if any(p.suffix == ".parquet" for p in path.rglob("*.parquet")):
        return _from_parquet_folder
    return _from_side_files


def _is_manifest(file):
    try:
        return {"image_id", "captions", "file", "sha256"} <= set(pq.read_schema(file).names)
    except (OSError, pa.ArrowException):
        return False


def _from_parquet(file):
    try:
        table = pq.ParquetFile(file)
        columns = _columns(table.schema_arrow.names, file)
        yield from _from_batches(table.iter_batches(columns=columns), file)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file} cannot be read as Parquet ({error}): mend or remove it") from error


def _columns(names, file):
    if "image" not in names:
        raise InputError(f"{file} has no column `image` (it has {', '.join(names)}): name it so")
    return ["image", *[c for c in CAPTION_COLUMNS if c in names][:1]]


def _from_batches(batches, file):
    """Record batches -> (captions, file, row); an image kept as a path alone is a plain file, from the table's folder."""
    row = 0
    for batch in batches:
        text = next((c for c in batch.schema.names if c != "image"), None)  # a Parquet reader keeps the file's own order
        captions = batch.column(text).to_pylist() if text else [None] * batch.num_rows
        for cell, caption in zip(batch.column("image"), captions, strict=True):
            cell = cell.as_py()
            plain = cell if isinstance(cell, str) else cell["path"] if isinstance(cell, dict) and not cell["bytes"] else None
            yield (_several(caption), Path(file).parent / plain, None) if plain else (_several(caption), file, row)
            row += 1


def _from_parquet_folder(folder):
    for file in sorted(folder.rglob("*.parquet")):
        yield from _from_parquet(file)


def _from_saved_dataset(folder):
    """What Hugging Face's save_to_disk wrote; of a DatasetDict, the split `train` or the only one."""
    try:
        if (folder / "dataset_dict.json").exists():
            splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
            if "train" not in splits and len(splits) > 1:
                raise InputError(f"{folder} has the splits {', '.join(splits)}: name the folder of one of them")
            folder = folder / ("train" if "train" in splits else splits[0])
        for shard in json.loads((folder / "state.json").read_text())["_data_files"]:
            file = folder / shard["filename"]
            table = arrow_table(str(file), file.stat().st_mtime_ns)
            yield from _from_batches(table.select(_columns(table.column_names, file)).to_batches(), file)
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise InputError(f"{folder} cannot be read as a saved data set ({error}): save it again") from error


def _from_metadata(folder):
    file = next(folder / name for name in ("metadata.csv", "metadata.jsonl") if (folder / name).exists())
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            lines = [line for line in stream if line.strip()]
            rows = list(csv.DictReader(lines)) if file.suffix == ".csv" else [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}): mend it") from error
    for number, row in enumerate(rows, 1):
        if not row.get("file_name"):
            raise InputError(f"{file} names no image in entry {number}: give it a `file_name`")
        caption = next((row[c] for c in CAPTION_COLUMNS if c in row), None)
        yield _several(caption), folder / row["file_name"], None


def _from_side_files(folder):
    for file in sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES):
        side = file.with_suffix(".txt")
        yield tuple(_lines(side)) if side.exists() else (), file, None


def _lines(file):
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as text ({error}): save it as UTF-8") from error


def _several(caption):
    """What a caption column holds, text or a list of texts -> tuple without empty ones."""
    captions = caption if isinstance(caption, (list, tuple)) else [caption]
    return tuple(c.strip() for c in captions if c and c.strip())


def _check_captions(example):
    captions, file, row = example
    if not captions:
        raise InputError(f"{file if row is None else f'row {row} of {file}'} has no caption: write one or leave the image out")


def _decoded_hash(example):
    _, file, row = example
    encoded = read_encoded(file, row)
    decode(encoded, file if row is None else f"row {row} of {file}")
    return hashlib.sha256(encoded).hexdigest()


def _check(items, check):
    """check(item) for all of them, in threads -> its answers; InputError with the first complaint and how many more there are."""
    def attempt(item):
        try:
            return check(item), None
        except InputError as error:
            return None, error
    with ThreadPoolExecutor() as threads:
        answers = list(threads.map(attempt, items))
    errors = [error for _, error in answers if error]
    if errors:
        raise InputError(f"{errors[0]}" + (f" (and {len(errors) - 1} more like it)" if errors[1:] else ""))
    return [answer for answer, _ in answers]
