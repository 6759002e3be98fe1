"""musubi-tuner's configuration of data sets, TOML or JSON: kohya's trainer of newer families.

    [general]            caption_extension = ".txt"
    [[datasets]]         image_directory = "dog", num_repeats = 4, control_directory = "edges"
    [[datasets]]         image_jsonl_file = "cats.jsonl"

    cats.jsonl           {"image_path": "cats/a.jpg", "caption": "a cat"}

Facts: kohya-ss/musubi-tuner, docs/dataset_config.md. A caption is the whole of its file; folders within are
not looked into. A data set takes what it lacks from `general`.
"""
import json
from collections.abc import Iterator
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.datasets.captions.side_files import said_in
from rotescope.datasets.captions.text_encoding import read_text
from rotescope.datasets.trainers.config_paths import apart_from, file_in, named_place, printable_name
from rotescope.datasets.trainers.config_values import Setting, captioned, read_config, tables_in
from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.datasets.trainers.entry import Item, ListedPicture, Quarantined, Remark, SetAside, TrainerLayout
from rotescope.datasets.trainers.picture_tree import PictureTree, count_pictures

OWN_KEYS = {"image_directory", "image_jsonl_file", "video_directory", "video_jsonl_file"}


def is_musubi_config(file: Path) -> bool:
    """Whether a configuration has data sets that name a directory or a list of pictures."""
    held = read_config(file)
    sets = held.get("datasets") if isinstance(held, dict) else None
    return isinstance(sets, list) and any(isinstance(s, dict) and OWN_KEYS & s.keys() for s in sets)


def musubi_entries(file: Path, options: DataOptions) -> Iterator[Item]:
    """The pictures of each data set, `num_repeats` times."""
    held, shown = read_config(file), printable_name(file)
    for number, one in enumerate(tables_in(held["datasets"], f"{shown}, datasets"), 1):
        yield from _data_set(Setting(f"{shown}, data set {number},", one, held.get("general") or {}), file, options)


def _data_set(setting, file, options):
    repeats = setting.number("num_repeats", 1)
    if repeats < 1 or repeats != int(repeats):
        raise InputError(f"{setting.where} has num_repeats {repeats}: write a whole number from 1 on")
    if setting.get("image_jsonl_file") is not None:
        yield from _listed(named_place(setting.get("image_jsonl_file"), file, options, "file"), repeats)
    elif setting.get("image_directory") is not None:
        yield from _found(named_place(setting.get("image_directory"), file, options), setting, repeats, file, options)
    elif setting.get("video_directory") or setting.get("video_jsonl_file"):
        yield Remark(f"{setting.where} is of film, and left out: only pictures are read")
    else:
        raise InputError(f"{setting.where} has no image_directory: name the folder of its pictures")


def _found(folder, setting, repeats, file, options):
    """The pictures in a folder, each with its caption file."""
    if setting.get("control_directory") is not None:
        beside = named_place(setting.get("control_directory"), file, options)
        apart_from(beside, folder, setting.where, "control_directory")
        yield from (SetAside(str(beside), "control pictures") for _ in range(count_pictures(beside)))
    tree = PictureTree(folder, options, "joined", setting.text("caption_extension"), recursive=False)
    yield from [captioned(tree, p, lambda p: (tree.captions(p), ""), repeats) for p in tree.pictures]
    yield from tree.remarks()
    yield from (SetAside(str(f), "") for f in tree.others)


def _listed(table, repeats):
    """The pictures that a file of JSON lines names, from its own folder."""
    for number, line in enumerate(read_text(table).split("\n"), 1):
        if not line.strip():
            continue
        try:
            about = json.loads(line)
            name = about.get("image_path") if isinstance(about, dict) else None
            yield ListedPicture(said_in(about), str(file_in(table.parent, name)), copies=repeats)
        except (InputError, ValueError, RecursionError) as error:
            where = f"{printable_name(table)}, line {number}"
            yield Quarantined(where, f"{where}: {error}: mend it or leave it out")


MUSUBI_TUNER = TrainerLayout("musubi-tuner's data set configuration", is_musubi_config, musubi_entries)
