"""SimpleTuner's multidatabackend.json: a list of backends, of which those of pictures are trained on.

    [{"id": "dog", "type": "local", "instance_data_dir": "dog", "repeats": 4, "caption_strategy": "textfile"}]

Facts: bghira/SimpleTuner, documentation/DATALOADER.md. `repeats` counts the showings after the first, so 4
shows a picture 5 times. A caption is each line of the text file ("textfile"), one prompt for all
("instanceprompt"), the file's name ("filename") or a column of a table ("parquet").
"""
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from rotescope.common.errors import InputError
from rotescope.common.parquet import read_table
from rotescope.datasets.captions.side_files import from_file_name, said_in
from rotescope.datasets.captions.text_encoding import read_text
from rotescope.datasets.trainers.config_paths import named_place, printable_name
from rotescope.datasets.trainers.config_values import Setting, captioned, read_config, tables_in
from rotescope.datasets.trainers.data_options import DataOptions
from rotescope.datasets.trainers.entry import Item, Remark, SetAside, TrainerLayout
from rotescope.datasets.trainers.kohya_config import with_shuffled
from rotescope.datasets.trainers.picture_tree import PictureTree, count_pictures

SEPARATORS = {"comma": ",", "space": " ", "period": "."}
STRATEGIES = ("textfile", "instanceprompt", "filename", "parquet")
ASIDE = {"conditioning": "control pictures", "eval": "held-out pictures (eval)"}
OWN_KEYS = {"instance_data_dir", "instance_data_root", "dataset_type", "caption_strategy", "aws_bucket_name"}


def is_simpletuner(file: Path) -> bool:
    """Whether a JSON file is a list of backends."""
    held = read_config(file)
    backends = isinstance(held, list) and bool(held) and all(isinstance(b, dict) for b in held)
    return backends and any(OWN_KEYS & b.keys() for b in held)


def simpletuner_entries(file: Path, options: DataOptions) -> Iterator[Item]:
    """The pictures of every backend that is trained on."""
    for number, backend in enumerate(tables_in(read_config(file), printable_name(file)), 1):
        where = f"{printable_name(file)}, backend {backend.get('id', number)},"
        yield from _backend(Setting(where, backend), file, options)


def _backend(setting, file, options):
    kind = setting.text("dataset_type", "image")
    if kind not in ("image", *ASIDE):   # caches of embeddings; sound and film
        return
    if setting.switch("disabled") or setting.switch("disable"):
        yield Remark(f"{setting.where} is disabled, and left out")
        return
    if setting.text("type", "local") != "local":
        raise InputError(f"{setting.where} is of type {setting.get('type')!r}, and only local folders are "
                         "read: download it, and name the folder")
    folder = named_place(setting.get("instance_data_dir") or setting.get("instance_data_root"), file, options)
    regular = setting.switch("is_regularisation_data") or setting.switch("is_regularization_data")
    reason = "regularisation pictures" if regular else ASIDE.get(kind, "")
    if reason:
        yield from (SetAside(str(folder), reason) for _ in range(count_pictures(folder)))
        return
    yield from _pictures(setting, folder, file, options)


def _pictures(setting, folder, file, options):
    repeats = setting.number("repeats", 0)
    if repeats < 0:
        raise InputError(f"{setting.where} has repeats {repeats}: write 0 or more, the showings after the "
                         "first")
    tree = PictureTree(folder, options, "joined" if setting.switch("disable_multiline_split") else "all")
    caption_of = _captioner(setting, tree, folder, file, options)
    yield from [captioned(tree, picture, caption_of, repeats + 1) for picture in tree.pictures]
    yield from tree.remarks()
    yield from (SetAside(str(f), "") for f in tree.others)
    if setting.number("probability", 1) != 1:
        yield Remark(f"{setting.where} has probability {setting.get('probability')}, which is not counted: "
                     "its repeats are")


def _captioner(setting, tree, folder, file, options):
    """-> a function of a picture that gives its captions and the manifest's note."""
    strategy, prompt = setting.text("caption_strategy", "textfile"), setting.text("instance_prompt")
    strategy = "instanceprompt" if setting.switch("only_instance_prompt") else strategy
    if strategy not in STRATEGIES:
        raise InputError(f"{setting.where} has caption_strategy {strategy!r}: known are "
                         f"{', '.join(STRATEGIES)}")
    if strategy == "instanceprompt" and not prompt:
        raise InputError(f"{setting.where} has caption_strategy instanceprompt and no instance_prompt: "
                         "write it")
    table = _caption_table(setting, file, options) if strategy == "parquet" else {}
    shuffle = Setting(f"{setting.where} caption_shuffle", setting.get("caption_shuffle", {}))

    def caption_of(picture):
        names = picture.relative_to(folder).as_posix(), picture.name, picture.stem
        own = {"textfile": lambda: tree.captions(picture), "instanceprompt": lambda: (prompt,),
               "filename": lambda: (from_file_name(picture.stem),),
               "parquet": lambda: next((table[n] for n in names if n in table), ())}[strategy]()
        if setting.switch("prepend_instance_prompt") and prompt and strategy != "instanceprompt":
            own = tuple(f"{prompt} {caption}" for caption in own)
        if not shuffle.switch("enable"):
            return own, ""
        separator = SEPARATORS.get(shuffle.text("split_on"), ",")
        return with_shuffled(own, int(shuffle.number("position_start", 0)), separator)
    return caption_of


def _caption_table(setting, file, options):
    """-> {file name: captions}."""
    about = Setting(f"{setting.where} parquet", setting.get("parquet", {}))
    place = named_place(about.get("path"), file, options, "file")
    columns = ("filename_column", "caption_column", "fallback_caption_column")
    named, said, fallback = (about.text(column) for column in columns)
    try:
        rows = read_table(place).to_pylist() if place.suffix == ".parquet" else [
            json.loads(line) for line in read_text(place).split("\n") if line.strip()]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{printable_name(place)} cannot be read as Parquet or JSON lines ({error}): mend "
                         "it") from error
    tables_in(rows, printable_name(place))
    if rows and (named not in rows[0] or said not in rows[0]):
        raise InputError(f"{about.where} names the columns {named!r} and {said!r}, and "
                         f"{printable_name(place)} has {', '.join(rows[0])}: correct filename_column and "
                         "caption_column")
    return {str(row.get(named)): said_in(row.get(said)) or said_in(row.get(fallback)) for row in rows}


SIMPLETUNER = TrainerLayout("SimpleTuner's backends", is_simpletuner, simpletuner_entries)
