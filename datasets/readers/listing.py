"""What lies at a path: which layout it has, the pictures that it lists, and what is set aside. No picture is
opened yet."""
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rotescope.common.errors import InputError
from rotescope.common.parquet import kind_of, read_schema
from rotescope.datasets.images.image_bytes import IMAGES, locate
from rotescope.datasets.manifest import Example, Manifest, exact_copies, plain_copies
from rotescope.datasets.readers.formats import from_hub, from_parquet, from_saved_dataset, from_tar
from rotescope.datasets.readers.image_folder import from_metadata, metadata_file, nested_metadata
from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.datasets.trainers.entry import Item, ListedPicture, Quarantined, Remark, SetAside, Tally
from rotescope.datasets.trainers.picture_tree import is_file_or_lost, unreadable
from rotescope.datasets.trainers.plain_folder import PLAIN_FOLDER
from rotescope.datasets.trainers.registry import configuration_layout, folder_layout, is_configuration

NAMED = 5   # of the files that are no part of a data set
TABLES = {".parquet": from_parquet, ".tar": from_tar}
PLAIN = PLAIN_FOLDER.name
ONE = re.compile(r"(picture|mask|cache)s\b")


@dataclass(frozen=True)
class Listing:
    """What a path lists, in order, and what was set aside on the way."""
    layout: str                                    # in words
    entries: tuple[ListedPicture | Example | Quarantined, ...]
    set_aside: tuple[tuple[str, int], ...] = ()    # (what it is, how many)
    remarks: tuple[str, ...] = ()                  # sentences on how it was read
    unused: tuple[str, ...] = ()                   # a sentence on files of no known kind
    by_trainer: bool = False                       # whether a trainer's layout says how often each is shown


def list_data(path: str | Path, options: DataOptions) -> Listing:
    """A file, a folder or a hub name -> Listing.

    Raises InputError where nothing is there, or the whole cannot be read.
    """
    place = Path(path)
    found = _of_folder(place, options) if place.is_dir() else _of_file(str(path), options)
    if options.instance_prompt and found.layout != PLAIN:
        raise InputError("--instance_prompt is for a folder of pictures without captions, and "
                         f"{locate(path, None)} is a {found.layout}: leave it out")
    return found


def in_numbers(set_aside: tuple[tuple[str, int], ...]) -> str:
    """[("masks", 12), ("latents caches", 1)] -> "12 masks, 1 latents cache"."""
    return ", ".join(f"{n:,} {what if n > 1 else ONE.sub(lambda plural: plural[1], what, count=1)}"
                     for what, n in set_aside)


# ----- files

def _of_file(name, options):
    path = Path(name)
    if not path.exists():
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise InputError(f"no data at {path}: name a folder of captioned images, a Parquet file or a "
                             "manifest")
        return Listing("data set on the hub", tuple(_listed(from_hub, name)))
    if kind := our_kind(path):
        if kind != "manifest":
            raise InputError(f"{path} is what rotescope found out ({kind}), no training data: name the "
                             "images or their manifest")
        return Listing("manifest", tuple(Manifest.load(path)))
    if is_configuration(path):
        layout = configuration_layout(path)
        return _collected(layout.name, layout.entries(path, options), path.parent, "")
    if path.suffix not in TABLES:
        raise InputError(f"{path} is neither a folder nor a Parquet or tar file, nor a trainer's "
                         "configuration: name one of these")
    return Listing(f"{path.suffix[1:]} file", tuple(_listed(TABLES[path.suffix], path)))


def our_kind(file: Path) -> str:
    """What a Parquet file of ours holds, as kind_of has it; "" of any other file."""
    try:
        schema = read_schema(file) if file.suffix == ".parquet" else None
    except (OSError, pa.ArrowException):
        return ""
    if schema and {"image_id", "captions", "file", "sha256"} <= set(schema.names):
        return "manifest"
    return kind_of(schema) if schema else ""


# ----- folders

def _of_folder(folder, options):
    names = {p.name for p in folder.iterdir()}
    if "dataset_dict.json" in names or "state.json" in names:
        return Listing("saved data set", tuple(_listed(from_saved_dataset, folder)))
    layout = folder_layout(folder, options)
    listed = metadata_file(folder) if options.data_layout == "auto" else None   # more than the folders' names
    if layout.name != PLAIN and not listed:
        return _collected(layout.name, layout.entries(folder, options), folder, "no part of kohya's folders")
    files, unread = _walk(folder)
    if not options.instance_prompt and (found := _by_metadata(folder, files)):
        return found
    for suffix, reader in TABLES.items():
        shards = [f for f in files if f.suffix == suffix and not our_kind(f)]
        if shards and not options.instance_prompt:
            read = unread + [entry for file in shards for entry in _shard(reader, file)]
            unused = _unused(folder, files, set(shards), f"beside the {suffix} files that are read")
            return Listing(f"folder of {suffix[1:]} files", tuple(read), unused=unused)
    items = PLAIN_FOLDER.entries(folder, options)
    return _collected(PLAIN, items, folder, "neither images nor captions of one")


def _by_metadata(folder, files):
    """The Listing of a folder with metadata files, at its top or below; None if it has none."""
    top = metadata_file(folder)
    used, others = ([top], []) if top else nested_metadata(folder, files)
    if not used:
        return None
    entries = [entry for file in used for entry in _listed(from_metadata, file)]
    named = {Path(os.path.normpath(e.file)) for e in entries if isinstance(e, ListedPicture)}
    inside = {f for other in others for f in files if f.is_relative_to(other.parent)}
    aside = sum(f.suffix.lower() in IMAGES for f in inside)
    known = {*used, *named, *inside}
    told = ", ".join(sorted({locate(f.relative_to(folder), None) for f in used}))
    why = f"not named in {told if len(used) < 3 else 'the metadata files'}"
    others_too = (("pictures of other splits", aside),) if aside else ()
    return Listing("Hugging Face folder", tuple(entries), others_too, unused=_unused(folder, files, known, why))


def _collected(layout, items: Iterable[Item], folder, why):
    """What a layout yields -> Listing; a picture that is listed twice under the same captions is one, its
    copies added."""
    entries: dict = {}
    aside, remarks, rest, tallies = Counter(), [], [], Counter()
    for item in items:
        if isinstance(item, SetAside):
            aside.update([item.reason] if item.reason else [])
            rest += [] if item.reason else [Path(item.file)]
        elif isinstance(item, Remark):
            remarks.append(item.sentence)
        elif isinstance(item, Tally):
            tallies[item.one, item.many, item.rest] += item.n
        elif isinstance(item, ListedPicture):
            key = (os.path.normpath(item.file), item.row, item.captions)
            if key in entries:
                tallies["picture is", "pictures are", "listed twice: the repeats are added"] += 1
            entries[key] = _added(entries.get(key), item)
        else:
            entries[item] = item
    remarks += [f"{n:,} {one if n == 1 else many} {what}" for (one, many, what), n in tallies.items()]
    told = tuple(dict.fromkeys(remarks))
    return Listing(layout, tuple(entries.values()), tuple(sorted(aside.items())), told,
                   _unused(folder, rest, set(), why or "named by no configuration"), layout != PLAIN)


def _added(before, entry):
    if before is None:
        return entry
    both = exact_copies(before.copies) + exact_copies(entry.copies)
    return ListedPicture(entry.captions, before.file, before.row, plain_copies(both), before.note)


def _unused(folder, files, used, why):
    """-> (a sentence,) on what lies there beside what is used, hidden files and manifests apart; () if
    nothing does."""
    rest = [locate(_from(f, folder), None) for f in files if Path(os.path.normpath(f)) not in used
            and not any(part.startswith(".") for part in _from(f, folder).parts)
            and not our_kind(f) and not f.name.endswith(".quarantined.csv")]
    if not rest:
        return ()
    more = f" and {len(rest) - NAMED:,} more" if len(rest) > NAMED else ""
    files_are = "1 file is" if len(rest) == 1 else f"{len(rest):,} files are"
    return (f"{files_are} left out of {locate(folder, None)}, {why}: {', '.join(rest[:NAMED])}{more}",)


def _from(file, folder):
    return file.relative_to(folder) if file.is_relative_to(folder) else file


def _walk(folder):
    """-> the files under a folder, sorted, links that lead nowhere included, and what could not be
    entered."""
    unread, found = [], []
    for root, _, names in os.walk(folder, onerror=lambda e: unread.append(unreadable(e.filename, e))):
        found += [Path(root, name) for name in names]
    return sorted(f for f in found if is_file_or_lost(f)), unread


def _listed(reader, path):
    """What the reader yields; entries that it cannot make out, it yields as InputErrors."""
    return [Quarantined(str(path), str(e)) if isinstance(e, InputError) else
            ListedPicture(e[0], str(e[1]), e[2]) for e in reader(path)]


def _shard(reader, file):
    """One file of many: a broken one is quarantined whole."""
    try:
        return _listed(reader, file)
    except InputError as error:
        return [Quarantined(locate(file, None), str(error))]
