"""Whatever holds captioned images -> Manifest, every image decoded once so that nothing breaks in mid-training.

    manifest.parquet                    our own, as rotescope prepare or a fine-tuned checkpoint has it
    data.parquet, or a folder of them   columns `image` (Hugging Face's struct, or bytes) and `caption`, `captions` or `text`
    shard.tar, or a folder of them      WebDataset: KEY.jpg beside KEY.txt, or KEY.json with a caption; nothing is unpacked
    folder with metadata.csv / .jsonl   `file_name` and a caption column, as Hugging Face's imagefolder, at the top or below
    folder with image.png + image.txt   or .caption or .json; each line a caption
    folder with 10_sks dog/             kohya's numbered folders
    a trainer's configuration           kohya's TOML, JSON and metadata, OneTrainer's, ai-toolkit's, SimpleTuner's
    folder that `Dataset.save_to_disk` wrote, or the NAME/OF a data set on Hugging Face's hub
"""
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rotescope.common.errors import InputError
from rotescope.datasets.images.image_bytes import decode, locate, read_encoded
from rotescope.datasets.manifest import Example, Manifest, identify
from rotescope.datasets.readers.description import describe_listing
from rotescope.datasets.readers.listing import Listing, in_numbers, list_data
from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.datasets.trainers.entry import Quarantined

USUAL = DataOptions()


@dataclass(frozen=True)
class Source:
    manifest: Manifest
    quarantined: tuple[Quarantined, ...]   # no image is dropped that is not named here,
    unused: tuple[str, ...] = ()           # or counted here: sentences on other files; "note: …" is no warning
    layout: str = "manifest"               # how the data lay, in words
    set_aside: tuple[tuple[str, int], ...] = ()   # (what it is, how many): masks, caches, regularisation pictures


def read_source(path: str | Path, need_captions: bool = True, options: DataOptions = USUAL) -> Source:
    """A file, a folder or a hub name -> Source: what is broken, missing or captionless is listed, not fatal.

    Raises InputError where nothing is there or nothing is left.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise InputError(f"{path!r} names no data: give a folder of captioned images, a Parquet file or a manifest")
    found = list_data(path, options)
    with ThreadPoolExecutor() as threads:
        examined = list(threads.map(partial(_examined, need_captions=need_captions), found.entries))
    quarantined = tuple(e for e in examined if isinstance(e, Quarantined))
    good = [e for e in examined if not isinstance(e, Quarantined)]
    if not good:
        raise InputError(_complaint(quarantined) if quarantined else f"{path} holds no images{_but(found)}: name a folder of "
                         "captioned images, a Parquet file or a manifest")
    manifest = Manifest(tuple(good)) if isinstance(good[0], Example) else _identified(good)
    return Source(manifest, quarantined, (*found.unused, *sentences(found)), found.layout, found.set_aside)


def _identified(examined):
    """[(ListedPicture, SHA-256)] -> Manifest."""
    made = identify([(e.captions, e.file, e.row, sha) for e, sha in examined])
    return Manifest(tuple(replace(one, copies=e.copies, note=e.note) if e.copies != 1 or e.note else one
                          for one, (e, _) in zip(made, examined, strict=True)))


def sentences(found: Listing) -> tuple[str, ...]:
    """What to say of a listing beside its pictures: of a trainer's layout what was understood; what was set aside; remarks."""
    understood = (f"note: {describe_listing('', found).lines()[0]}",) if found.by_trainer else ()
    aside = (f"note: {in_numbers(found.set_aside)} set aside",) if found.set_aside else ()
    return (*understood, *aside, *(f"note: {remark}" for remark in found.remarks))


def _but(found):
    return f", only {in_numbers(found.set_aside)}" if found.set_aside else ""


def as_source(data):
    """A Source, a Manifest, or what read_source reads -> Source; captions are not needed."""
    if isinstance(data, Source):
        return data
    return Source(data, ()) if isinstance(data, Manifest) else read_source(data, need_captions=False)


def load_source(path, need_captions=True, options=USUAL):
    """As read_source -> the Manifest alone; any broken, missing or captionless image is an InputError with their number."""
    source = read_source(path, need_captions, options)
    if source.quarantined:
        raise InputError(_complaint(source.quarantined))
    return source.manifest


def load_manifest(data: str | Path, **options: Any) -> Manifest:
    """The images of a data set, each known by its content.

    Parameters
    ----------
    data : str or Path
        A folder of images, a Parquet or tar file, a manifest, a trainer's configuration of its data, a saved Hugging Face data
        set, or the name of one on the hub.
    **options
        How it is read, as the commands have it: ``caption_lines``, ``data_layout``, ``allow_outside_paths`` and so on.

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
    chosen = DataOptions(**options)
    chosen.check()
    return load_source(data, need_captions=False, options=chosen)


def _complaint(quarantined):
    more = len(quarantined) - 1
    return quarantined[0].reason + (f" (and {more} more like it)" if more else "")


def _examined(entry, need_captions):
    """ListedPicture -> it and the SHA-256 of the bytes; an Example of a manifest as it is; or Quarantined."""
    if isinstance(entry, Quarantined):
        return entry
    planned = isinstance(entry, Example)
    try:
        if need_captions and not entry.captions:
            raise InputError(f"{locate(entry.file, entry.row)} has no caption: write one or leave the image out")
        if planned:
            entry.open()
            return entry
        encoded = read_encoded(entry.file, entry.row)
        decode(encoded, locate(entry.file, entry.row))
        return entry, hashlib.sha256(encoded).hexdigest()
    except InputError as error:
        return Quarantined(locate(entry.file, entry.row), str(error), entry.group if planned else "")
