"""kohya's configuration of data sets, TOML or JSON, and its metadata of pictures, JSON.

    [general]                       shuffle_caption = true, keep_tokens = 1
    [[datasets]]                    resolution = 1024
    [[datasets.subsets]]            image_dir = "dog", num_repeats = 10, class_tokens = "sks dog"
    [[datasets.subsets]]            image_dir = "cat", metadata_file = "meta.json"

    meta.json                       {"a.jpg": {"caption": "a dog", "tags": "dog, grass"}}

Facts: kohya-ss/sd-scripts. A subset takes what it lacks from its data set, and that from `general`. The
number in a folder's name does not count here.
"""
from collections.abc import Iterator
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.datasets.captions.side_files import said_in, shuffle_note, shuffle_tags, split_lines
from rotescope.datasets.images.image_bytes import IMAGES
from rotescope.datasets.trainers.config_paths import apart_from, file_in, named_place, printable_name
from rotescope.datasets.trainers.config_values import Setting, captioned, read_config, tables_in
from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.datasets.trainers.entry import (
    Item,
    ListedPicture,
    Quarantined,
    Remark,
    SetAside,
    Tally,
    TrainerLayout,
)
from rotescope.datasets.trainers.kohya_folders import numbered_folder
from rotescope.datasets.trainers.picture_tree import PictureTree, count_pictures

REGULAR = "regularisation pictures (is_reg)"
BUCKET_OPTIONS = ("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps")   # rotescope finetune calls them so, too


# ----- the configuration

def is_kohya_config(file: Path) -> bool:
    """Whether a configuration has data sets with subsets."""
    held = read_config(file)
    sets = held.get("datasets") if isinstance(held, dict) else None
    return isinstance(sets, list) and any(isinstance(s, dict) and "subsets" in s for s in sets)


def kohya_config_entries(file: Path, options: DataOptions) -> Iterator[Item]:
    """The pictures of each subset, `num_repeats` times."""
    held, shown = read_config(file), printable_name(file)
    yield from _in_buckets(Setting(shown, *held["datasets"][:1], held.get("general") or {}))
    for number, one in enumerate(tables_in(held["datasets"], f"{shown}, datasets"), 1):
        subsets = tables_in(one.get("subsets") or [], f"{shown}, subsets of data set {number}")
        named: set[str] = set()
        for inner, subset in enumerate(subsets, 1):
            where = f"{shown}, subset {inner} of data set {number},"
            place = str(subset.get("image_dir") or inner)
            if place in named:   # kohya's scripts keep the first
                yield Remark(f"{where} names {printable_name(place)} again: the first counts")
                continue
            named.add(place)
            outer = {key: value for key, value in one.items() if key != "subsets"}
            yield from _subset(Setting(where, subset, outer, held.get("general") or {}), file, options)


def _in_buckets(setting):
    """A Remark where pictures are trained on in their shapes: how that is said here."""
    if setting.switch("enable_bucket"):
        given = "".join(f" --{key} {setting.number(key, 0):g}" for key in BUCKET_OPTIONS if setting.get(key) is not None)
        yield Remark(f"{setting.where} has enable_bucket: rotescope finetune --aspect_buckets true{given} trains "
                     "so, and --resolution buckets samples so")


def _subset(setting, file, options):
    if setting.get("image_dir") is None:
        raise InputError(f"{setting.where} has no image_dir: name the folder of its pictures")
    folder = named_place(setting.get("image_dir"), file, options)
    name, repeats = printable_name(folder.name), setting.number("num_repeats", 1)
    if repeats != int(repeats):
        raise InputError(f"{setting.where} has num_repeats {repeats}: write a whole number")
    if setting.switch("is_reg") or repeats < 1:
        reason = REGULAR if setting.switch("is_reg") else f"pictures with {repeats} repeats ({name}/)"
        yield from (SetAside(str(folder), reason) for _ in range(count_pictures(folder)))
        return
    own = numbered_folder(folder)
    if own and own.repeats != repeats:
        yield Tally(1, "folder has", "folders have", "another number in its name than num_repeats, which "
                                                     "counts here")
    if setting.get("conditioning_data_dir") is not None:
        beside = named_place(setting.get("conditioning_data_dir"), file, options)
        apart_from(beside, folder, setting.where, "conditioning_data_dir")
        yield from (SetAside(str(beside), "control pictures") for _ in range(count_pictures(beside)))
    if setting.get("metadata_file") is not None:
        table = named_place(setting.get("metadata_file"), file, options, "file")
        yield from _listed(table, folder, setting, repeats)
    else:
        yield from _found(folder, setting, repeats, options)


def _found(folder, setting, repeats, options):
    """The pictures in a folder, each with its caption file, else the class tokens."""
    lines = "all" if setting.switch("enable_wildcard") else "first"
    tree = PictureTree(folder, options, lines, setting.text("caption_extension"), recursive=False)
    words = setting.text("class_tokens")

    def caption_of(picture):
        return as_trained(tree.captions(picture) or ((words,) if words else ()), setting)
    if not tree.pictures:
        yield Remark(f"{printable_name(folder)} holds no pictures itself, and kohya does not look into its "
                     "folders")
    found = [captioned(tree, picture, caption_of, repeats) for picture in tree.pictures]
    yield from found
    yield from tree.remarks()
    yield from (SetAside(str(f), "") for f in tree.others)
    if tree.wanted and tree.pictures and not tree.has_captions:
        yield Remark(f"no picture in {printable_name(folder.name)}/ has a {tree.wanted} file, where its "
                     "caption is looked for")


def as_trained(captions: tuple[str, ...], setting: Setting) -> tuple[tuple[str, ...], str]:
    """Captions with the subset's prefix and suffix; where tags are shuffled, once in the file's order and
    once in another.

    Returns the captions and the manifest's note.
    """
    before, behind = (setting.text(key) for key in ("caption_prefix", "caption_suffix"))
    full = tuple(" ".join(part for part in (before, caption, behind) if part) for caption in captions)
    captions, note = _in_both_orders(full, setting)
    second, separator = setting.text("secondary_separator"), setting.text("caption_separator", ",") or ","
    return tuple(c.replace(second, separator) for c in captions) if second else captions, note


def _in_both_orders(full, setting):
    """Captions in the file's order and, where tags are shuffled, in another -> captions, note."""
    if not setting.switch("shuffle_caption"):
        return full, ""
    keep, separator = int(setting.number("keep_tokens", 0)), setting.text("caption_separator", ",") or ","
    mark = setting.text("keep_tokens_separator")
    if mark and full and mark in full[0]:   # what stands before it stays, and it is no part of the caption
        keep = sum(bool(tag.strip()) for tag in full[0].split(mark)[0].split(separator))
        parts = ([part.strip(f"{separator} ") for part in caption.split(mark)] for caption in full)
        full = tuple(f"{separator} ".join(several) for several in parts)
    return with_shuffled(full, keep, separator)


def with_shuffled(captions: tuple[str, ...], keep: int, separator: str) -> tuple[tuple[str, ...], str]:
    """Each caption in the file's order and once shuffled, the first of all in the file's order -> captions,
    note."""
    both = ((caption, shuffle_tags(caption, keep, separator or ",")) for caption in captions)
    found = tuple(dict.fromkeys(variant for pair in both for variant in pair))
    return found, shuffle_note(keep) if len(found) > len(set(captions)) else ""


# ----- the metadata

def is_kohya_metadata(file: Path) -> bool:
    """Whether a JSON file says `caption` or `tags` of pictures by their names."""
    held = read_config(file)
    return (file.suffix.lower() == ".json" and isinstance(held, dict) and bool(held)
            and all(isinstance(about, dict) for about in held.values())
            and any({"caption", "tags"} & about.keys() for about in held.values()))


def kohya_metadata_entries(file: Path, options: DataOptions) -> Iterator[Item]:
    """The pictures that the file names, which lie beside it, each once."""
    yield from _listed(file, file.parent, Setting(printable_name(file), {}), 1)


def _listed(table, folder, setting, repeats):
    held = read_config(table)
    if not isinstance(held, dict):
        raise InputError(f"{printable_name(table)} should say of each picture, by its name, its caption or "
                         "tags: mend it")
    for name, about in held.items():
        try:
            place = _picture(folder, name)
            said = said_in(about if isinstance(about, dict) else {}, setting.text("caption_separator", ","))
            lines = tuple(line for text in said for line in split_lines(text, "first"))
            captions, note = as_trained(lines, setting)
            yield ListedPicture(captions, str(place), copies=repeats, note=note)
        except InputError as error:
            yield Quarantined(printable_name(name), f"{printable_name(table)}: {error}")


def _picture(folder, name):
    """kohya's names may lack the extension."""
    place = file_in(folder, name)
    if place.is_file():
        return place
    endings = (ending for ext in sorted(IMAGES) for ending in (ext, ext.upper()))
    found = next((p for e in endings if (p := place.with_name(place.name + e)).is_file()), None)
    if not found:
        raise InputError(f"there is no picture {printable_name(name)} in {printable_name(folder)}: bring it "
                         "back or leave it out")
    return file_in(folder, str(found))


KOHYA_CONFIG = TrainerLayout("kohya's data set configuration", is_kohya_config, kohya_config_entries)
KOHYA_METADATA = TrainerLayout("kohya's metadata", is_kohya_metadata, kohya_metadata_entries)
