"""OneTrainer's concepts: a list of folders, each shown as its balancing says.

    concepts.json   [{"path": "dog", "enabled": true, "include_subdirectories": false, "balancing": 1.5,
                      "balancing_strategy": "REPEATS", "text": {"prompt_source": "sample", "prompt_path":
                      ""}}]

Facts: Nerogar/OneTrainer. Under REPEATS an epoch shows each picture `balancing` times, fractions over several
epochs; under SAMPLES it shows so many pictures of the folder together. A prompt comes from the text file
beside the picture ("sample"), from one file for all ("concept") or from the picture's name ("filename").
"""
from collections.abc import Iterator
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.datasets.captions.side_files import split_lines
from rotescope.datasets.captions.text_encoding import read_text
from rotescope.datasets.trainers.config_paths import named_place, printable_name
from rotescope.datasets.trainers.config_values import Setting, captioned, read_config, tables_in
from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.datasets.trainers.entry import Item, Remark, SetAside, TrainerLayout
from rotescope.datasets.trainers.kohya_config import with_shuffled
from rotescope.datasets.trainers.picture_tree import PictureTree, count_pictures

SOURCES = ("sample", "concept", "filename")
OWN_KEYS = {"include_subdirectories", "balancing", "balancing_strategy", "text", "image", "enabled",
            "concept_stats", "repeats"}
OTHER_TYPES = {"VALIDATION": "held-out pictures (validation concepts)",
               "PRIOR_PREDICTION": "regularisation pictures (prior)"}


def is_onetrainer(file: Path) -> bool:
    """Whether a JSON file is a list of concepts, or a training configuration that holds or names one."""
    held = read_config(file)
    if isinstance(held, dict):
        return "concept_file_name" in held or _are_concepts(held.get("concepts"))
    return _are_concepts(held)


def _are_concepts(held):
    return (isinstance(held, list) and bool(held)
            and all(isinstance(c, dict) and "path" in c and OWN_KEYS & c.keys() for c in held))


def onetrainer_entries(file: Path, options: DataOptions) -> Iterator[Item]:
    """The pictures of each concept that is enabled."""
    held, home = read_config(file), file
    if isinstance(held, dict) and not held.get("concepts"):
        home = named_place(held["concept_file_name"], file, options, "file")
        held = read_config(home)
    concepts = held.get("concepts") if isinstance(held, dict) else held
    for number, concept in enumerate(tables_in(concepts, f"{printable_name(home)}, its concepts"), 1):
        yield from _concept(Setting(f"{printable_name(home)}, concept {number},", concept), home, options)


def _concept(setting, file, options):
    if not setting.get("path"):
        raise InputError(f"{setting.where} has no path: name the folder of its pictures")
    folder = named_place(setting.get("path"), file, options)
    reason = OTHER_TYPES.get(setting.text("type", "STANDARD"), "")
    if setting.switch("validation_concept"):
        reason = OTHER_TYPES["VALIDATION"]
    if not setting.switch("enabled", True):
        reason = "pictures of concepts that are not enabled"
    balancing = setting.number("balancing", setting.number("repeats", 1.0))
    if not reason and balancing <= 0:
        reason = f"pictures of concepts with balancing {balancing:g}"
    if reason:
        yield from (SetAside(str(folder), reason) for _ in range(count_pictures(folder)))
        return
    tree = PictureTree(folder, options, recursive=setting.switch("include_subdirectories"))
    copies = _copies(setting, balancing, len(tree.pictures))
    caption_of = _captioner(Setting(f"{setting.where} text", setting.get("text", {})), tree, file, options)
    yield from [captioned(tree, picture, caption_of, copies) for picture in tree.pictures]
    yield from tree.remarks()
    yield from (SetAside(str(f), "") for f in tree.others)
    if not tree.pictures:
        yield Remark(f"{printable_name(folder)} holds no pictures, though a concept names it")


def _copies(setting, balancing, pictures):
    """How often an epoch shows each of the concept's pictures."""
    strategy = setting.text("balancing_strategy", "REPEATS")
    if strategy not in ("REPEATS", "SAMPLES"):
        raise InputError(f"{setting.where} has balancing_strategy {strategy!r}: OneTrainer knows REPEATS "
                         "and SAMPLES")
    return balancing if strategy == "REPEATS" else int(balancing) / max(pictures, 1)


def _captioner(text, tree, file, options):
    """-> a function of a picture that gives its captions and the manifest's note."""
    source = text.text("prompt_source", "sample")
    if source not in SOURCES:
        raise InputError(f"{text.where} has prompt_source {source!r}: OneTrainer knows {', '.join(SOURCES)}")
    shared: tuple[str, ...] = ()
    if source == "concept":
        place = named_place(text.get("prompt_path"), file, options, "file")
        shared = split_lines(read_text(place, options.caption_encoding), options.lines_of("all"))

    def caption_of(picture):
        own = {"sample": lambda: tree.captions(picture), "concept": lambda: shared,
               "filename": lambda: (picture.stem,)}[source]()
        if not text.switch("enable_tag_shuffling"):
            return own, ""
        return with_shuffled(own, int(text.number("keep_tags_count", 1)), text.text("tag_delimiter", ","))
    return caption_of


ONETRAINER = TrainerLayout("OneTrainer's concepts", is_onetrainer, onetrainer_entries)
