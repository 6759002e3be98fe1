"""Whatever holds captioned images -> Manifest, every image decoded once so that nothing breaks in mid-training.

    manifest.parquet                    our own, as rotescope prepare or a fine-tuned checkpoint has it
    data.parquet, or a folder of them   columns `image` (Hugging Face's struct, or bytes) and `caption`, `captions` or `text`
    shard.tar, or a folder of them      WebDataset: KEY.jpg beside KEY.txt, or KEY.json with a caption; nothing is unpacked
    folder with metadata.csv / .jsonl   `file_name` and a caption column, as Hugging Face's imagefolder
    folder with image.png + image.txt   one caption a line
    folder that `Dataset.save_to_disk` wrote, or the NAME/OF a data set on Hugging Face's hub
"""
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from rotescope.common.errors import InputError
from rotescope.common.parquet import kind_of, read_schema
from rotescope.datasets.images.image_bytes import IMAGES, decode, locate, read_encoded
from rotescope.datasets.manifest import Example, Manifest, identify
from rotescope.datasets.readers.formats import from_hub, from_metadata, from_parquet, from_saved_dataset, from_tar, metadata_file

NAMED = 5   # of the files that are no part of a data set


@dataclass(frozen=True)
class Quarantined:
    """An image, or a file of images, that is left out."""
    name: str
    reason: str       # a sentence that names it and says what to do
    group: str = ""   # what a manifest's plan has it for


@dataclass(frozen=True)
class Source:
    manifest: Manifest
    quarantined: tuple[Quarantined, ...]   # no image is dropped that is not named here,
    unused: tuple[str, ...] = ()           # or counted here: a sentence on the other files of a folder


def read_source(path, need_captions=True):
    """A file, a folder or a hub name -> Source: what is broken, missing or captionless is listed, not fatal.

    Raises InputError where nothing is there or nothing is left.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise InputError(f"{path!r} names no data: give a folder of captioned images, a Parquet file or a manifest")
    entries, unused = _folder_entries(Path(path)) if Path(path).is_dir() else (_entries(path), ())
    with ThreadPoolExecutor() as threads:
        examined = list(threads.map(partial(_examined, need_captions=need_captions), entries))
    quarantined = tuple(e for e in examined if isinstance(e, Quarantined))
    good = [e for e in examined if not isinstance(e, Quarantined)]
    if not good:
        raise InputError(_complaint(quarantined) if quarantined else
                         f"{path} holds no images: name a folder of captioned images, a Parquet file or a manifest")
    return Source(Manifest(tuple(good)) if isinstance(good[0], Example) else identify(good), quarantined, unused)


def as_source(data):
    """A Source, a Manifest, or what read_source reads -> Source; captions are not needed."""
    if isinstance(data, Source):
        return data
    return Source(data, ()) if isinstance(data, Manifest) else read_source(data, need_captions=False)


def load_source(path, need_captions=True):
    """As read_source -> the Manifest alone; any broken, missing or captionless image is an InputError with their number."""
    source = read_source(path, need_captions)
    if source.quarantined:
        raise InputError(_complaint(source.quarantined))
    return source.manifest


def load_manifest(data: str | Path) -> Manifest:
    """The images of a data set, each known by its content.

    Parameters
    ----------
    data : str or Path
        A folder of images, a Parquet or tar file, a manifest, a saved Hugging Face data set, or the name of one on the hub.

    Returns
    -------
    Manifest
        A sequence of Example: image_id, captions, copies, group, `open()`.

    Raises
    ------
    InputError
        If nothing is there, or a picture of it cannot be read.

    Examples
    --------
    >>> from rotescope import load_manifest
    >>> manifest = load_manifest("photos")
    >>> len(manifest), manifest[0].open().size
    (6, (64, 64))
    """
    return load_source(data, need_captions=False)


def _complaint(quarantined):
    more = len(quarantined) - 1
    return quarantined[0].reason + (f" (and {more} more like it)" if more else "")


def _examined(entry, need_captions):
    """(captions, file, row) -> the same with the SHA-256 of the bytes; an Example of a manifest as it is; or Quarantined."""
    if isinstance(entry, Quarantined):
        return entry
    planned = isinstance(entry, Example)
    captions, file, row = (entry.captions, entry.file, entry.row) if planned else entry
    try:
        if need_captions and not captions:
            raise InputError(f"{locate(file, row)} has no caption: write one or leave the image out")
        if planned:
            entry.open()
            return entry
        encoded = read_encoded(file, row)
        decode(encoded, locate(file, row))
        return captions, file, row, hashlib.sha256(encoded).hexdigest()
    except InputError as error:
        return Quarantined(locate(file, row), str(error), entry.group if planned else "")


# ----- what lies where

def _entries(path):
    """File or hub name -> Examples of a manifest, or (captions, file, row) each; Quarantined for what cannot be listed."""
    name, path = str(path), Path(path)
    if not path.exists():
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise InputError(f"no data at {path}: name a folder of captioned images, a Parquet file or a manifest")
        return _listed(from_hub, name)
    if kind := _kind(path):
        if kind != "manifest":
            raise InputError(f"{path} is what rotescope found out ({kind}), no training data: name the images or their manifest")
        return Manifest.load(path)
    if path.suffix not in TABLES:
        raise InputError(f"{path} is neither a folder nor a Parquet or tar file: name one of these")
    return _listed(TABLES[path.suffix], path)


def _folder_entries(folder):
    """-> the same of a folder, and a sentence on the files in it that are not among them, if there are any."""
    names = {p.name for p in folder.iterdir()}
    if "dataset_dict.json" in names or "state.json" in names:
        return _listed(from_saved_dataset, folder), ()
    files, unread = _walk(folder)
    if metadata := metadata_file(folder):
        entries = _listed(from_metadata, folder)
        named = {Path(os.path.normpath(e[1])) for e in entries if not isinstance(e, Quarantined)}
        return entries, _unused(folder, files, {metadata, *named}, f"not named in {metadata.name}")
    for suffix, reader in TABLES.items():
        shards = [f for f in files if f.suffix == suffix and not _kind(f)]
        if shards:
            read = unread + [entry for file in shards for entry in _shard(reader, file)]
            return read, _unused(folder, files, set(shards), f"beside the {suffix} files that are read")
    images = [f for f in files if f.suffix.lower() in IMAGES]
    known = {*images, *(f.with_suffix(".txt") for f in images)}
    return unread + [_with_side_file(f) for f in images], _unused(folder, files, known, "neither images nor captions of one")


def _unused(folder, files, used, why):
    """-> (a sentence,) on what lies there beside what is used, hidden files and manifests apart; () if nothing does."""
    rest = [locate(f.relative_to(folder), None) for f in files if Path(os.path.normpath(f)) not in used
            and not any(part.startswith(".") for part in f.relative_to(folder).parts)
            and not _kind(f) and not f.name.endswith(".quarantined.csv")]
    if not rest:
        return ()
    more = f" and {len(rest) - NAMED:,} more" if len(rest) > NAMED else ""
    files_are = "1 file is" if len(rest) == 1 else f"{len(rest):,} files are"
    return (f"{files_are} left out of {locate(folder, None)}, {why}: {', '.join(rest[:NAMED])}{more}",)


def _walk(folder):
    """-> the files under a folder, sorted, links that lead nowhere included, and what could not be entered."""
    unread, found = [], []
    for root, _, names in os.walk(folder, onerror=lambda e: unread.append(_unreadable(e.filename, e))):
        found += [Path(root, name) for name in names]
    return sorted(f for f in found if f.is_file() or f.is_symlink()), unread


def _listed(reader, path):
    """What the reader yields; entries that it cannot make out, it yields as InputErrors."""
    return [Quarantined(str(path), str(e)) if isinstance(e, InputError) else (e[0], str(e[1]), e[2]) for e in reader(path)]


def _shard(reader, file):
    """One file of many: a broken one is quarantined whole."""
    try:
        return _listed(reader, file)
    except InputError as error:
        return [Quarantined(locate(file, None), str(error))]


def _kind(file):
    """What a Parquet file of ours holds, as kind_of has it; "" of any other file."""
    try:
        schema = read_schema(file) if file.suffix == ".parquet" else None
    except (OSError, pa.ArrowException):
        return ""
    if schema and {"image_id", "captions", "file", "sha256"} <= set(schema.names):
        return "manifest"
    return kind_of(schema) if schema else ""


def _with_side_file(file):
    """-> (captions, file, None); a caption is a line of the text file of the same name."""
    side = file.with_suffix(".txt")
    try:
        lines = side.read_text(encoding="utf-8-sig").split("\n") if side.exists() else ()
        return tuple(line.strip() for line in lines if line.strip()), str(file), None
    except (OSError, ValueError) as error:
        return _unreadable(side, error)


def _unreadable(file, error):
    name = locate(file, None)
    return Quarantined(name, f"{name} cannot be read ({error}): mend it or leave it out")


TABLES = {".parquet": from_parquet, ".tar": from_tar}
