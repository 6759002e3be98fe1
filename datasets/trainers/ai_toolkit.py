"""ai-toolkit's configuration: YAML (or JSON) whose processes name folders of pictures.

    config:
      process:
        - trigger_word: sks
          datasets:
            - folder_path: dog
              caption_ext: txt
              num_repeats: 10

Facts: ostris/ai-toolkit. The whole of a caption file is the caption; `[trigger]` in it is the trigger word,
which comes first where the caption lacks it.
"""
from collections.abc import Iterator
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.datasets.captions.side_files import with_trigger
from rotescope.datasets.trainers.config_paths import apart_from, named_place, printable_name
from rotescope.datasets.trainers.config_values import Setting, captioned, read_config, tables_in
from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.datasets.trainers.entry import Item, SetAside, TrainerLayout
from rotescope.datasets.trainers.kohya_config import with_shuffled
from rotescope.datasets.trainers.picture_tree import PictureTree, count_pictures

BESIDE = {"control_path": "control pictures", "mask_path": "masks", "clip_image_path": "control pictures",
          "unconditional_path": "control pictures", "inpaint_path": "control pictures"}


def is_ai_toolkit(file: Path) -> bool:
    """Whether a configuration has processes with data sets."""
    held = read_config(file)
    config = held.get("config") if isinstance(held, dict) else None
    process = config.get("process") if isinstance(config, dict) else None
    return isinstance(process, list) and any(isinstance(p, dict) and "datasets" in p for p in process)


def ai_toolkit_entries(file: Path, options: DataOptions) -> Iterator[Item]:
    """The pictures of every data set of every process, `num_repeats` times."""
    shown, config = printable_name(file), read_config(file)["config"]
    for process in tables_in(config["process"], f"{shown}, process"):
        outer = Setting(f"{shown}, process,", process)
        for number, one in enumerate(tables_in(process.get("datasets") or [], f"{shown}, datasets"), 1):
            trigger = {"trigger_word": outer.text("trigger_word")}
            setting = Setting(f"{shown}, data set {number},", one, trigger)
            yield from _data_set(setting, str(config.get("name") or ""), file, options)


def _data_set(setting, job, file, options):
    """job: the name of the configuration, which `[name]` in a path stands for."""
    path = setting.text("folder_path") or setting.text("dataset_path")
    if not path:
        raise InputError(f"{setting.where} has no folder_path: name the folder of its pictures")
    path = path.replace("[name]", job)
    folder = named_place(path, file, options)
    repeats = setting.number("num_repeats", 1)
    if setting.switch("is_reg") or repeats < 1:
        few = f"pictures with {repeats} repeats"
        reason = "regularisation pictures (is_reg)" if setting.switch("is_reg") else few
        yield from (SetAside(str(folder), reason) for _ in range(count_pictures(folder)))
        return
    aside = {}
    for key, reason in BESIDE.items():
        for named in filter(None, _several(setting.get(key))):
            place = apart_from(named_place(named, file, options), folder, setting.where, key)
            aside[place.absolute()] = reason
            yield from (SetAside(str(place), reason) for _ in range(count_pictures(place)))
    extension = setting.text("caption_ext").lstrip(".")
    tree = PictureTree(folder, options, "joined", extension and f".{extension}")
    pictures = [p for p in tree.pictures if not _is_kept_apart(p, folder, aside)]
    caption_of = _captioner(setting, tree)
    yield from [captioned(tree, picture, caption_of, repeats) for picture in pictures]
    yield from tree.remarks()
    yield from (SetAside(str(f), "") for f in tree.others)


def _is_kept_apart(picture, folder, aside):
    """ai-toolkit passes over folders whose names begin with an underscore; control pictures may lie
    within."""
    inner = picture.relative_to(folder).parts[:-1]
    beside = any(picture.absolute().is_relative_to(place) for place in aside)
    return beside or any(part.startswith("_") for part in inner)


def _captioner(setting, tree):
    trigger, default = setting.text("trigger_word"), setting.text("default_caption")

    def caption_of(picture):
        own = tree.captions(picture) or ((default,) if default else ())
        full = tuple(with_trigger(caption, trigger) for caption in own or ([""] if trigger else ()))
        return with_shuffled(full, 0, ",") if setting.switch("shuffle_tokens") else (full, "")
    return caption_of


def _several(value):
    return value if isinstance(value, list) else [value]


AI_TOOLKIT = TrainerLayout("ai-toolkit's configuration", is_ai_toolkit, ai_toolkit_entries)
