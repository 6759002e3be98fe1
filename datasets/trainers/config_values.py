"""Values of a trainer's configuration: the file read as JSON, TOML or YAML, and each value checked for what
it should be."""
import json
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from rotescope.common.errors import InputError
from rotescope.datasets.captions.text_encoding import read_text
from rotescope.datasets.trainers.config_paths import printable_name
from rotescope.datasets.trainers.entry import Item, ListedPicture, Quarantined
from rotescope.datasets.trainers.picture_tree import PictureTree

SUFFIXES = (".toml", ".json", ".yaml", ".yml")
LARGEST = 64_000_000   # bytes of a configuration: kohya's metadata of a million pictures are as much


def read_config(file: Path) -> Any:
    """What a .toml, .json, .yaml or .yml file holds. InputError if it cannot be read as what its name
    says."""
    stat = file.stat()
    if stat.st_size > LARGEST:
        raise InputError(f"{printable_name(file)} has {stat.st_size:,} bytes, more than a configuration "
                         "has: name the folder")
    return _parsed(str(file), stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _parsed(file, mtime):
    text, kind = read_text(file), Path(file).suffix.lower()
    try:
        return {".toml": tomllib.loads, ".json": json.loads}.get(kind, yaml.safe_load)(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{printable_name(file)} is no {kind[1:].upper()} ({why}): mend it") from error


class Setting:
    """One table of a configuration, over those that it takes its defaults from; `where` is what an InputError
    calls it."""

    def __init__(self, where: str, *tables: Any):
        self.where = where
        self.tables = [self._checked(table) for table in tables]   # the first wins

    def get(self, key: str, default: Any = None) -> Any:
        """A value as it stands; the default where no table has it, or has nothing there."""
        return next((t[key] for t in self.tables if t.get(key) is not None), default)

    def number(self, key: str, default: int | float) -> int | float:
        """A finite number. InputError for something else."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
            raise InputError(f"{self.where} has {key} {value!r}: write a number")
        return value

    def switch(self, key: str, default: bool = False) -> bool:
        """True or false. InputError for something else."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise InputError(f"{self.where} has {key} {value!r}: write true or false")
        return value

    def text(self, key: str, default: str = "") -> str:
        """A text. InputError for something else."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise InputError(f"{self.where} has {key} {value!r}: write a text")
        return value

    def _checked(self, table):
        if not isinstance(table, dict):
            raise InputError(f"{self.where} is {type(table).__name__}, and should be a table of settings: "
                             "mend it")
        return table


def tables_in(value: Any, where: str) -> list[Any]:
    """A list of tables, or one of them. InputError for something else."""
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(table, dict) for table in found):
        raise InputError(f"{where} should hold tables of settings: mend it")
    return found


def captioned(tree: PictureTree, picture: Path, caption_of, copies: int | float = 1) -> Item:
    """A picture with what `caption_of(picture)` says, (captions, note); Quarantined where that is an
    InputError."""
    try:
        captions, note = caption_of(picture)
    except InputError as error:
        return Quarantined(printable_name(picture), str(error))
    return ListedPicture(captions, str(picture), copies=copies, note=note)
