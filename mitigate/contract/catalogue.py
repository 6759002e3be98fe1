"""Mitigations and detectors by name: what is known before code is loaded, and how a text with settings is read.

This file and the two registries import neither torch nor diffusers: a list and a wrong name answer at once.
"""
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from importlib import import_module
from math import isfinite

from rotescope.common.errors import InputError
from rotescope.common.suggestions import suggestion
from rotescope.mitigate.contract.families import FAMILIES
from rotescope.mitigate.contract.turning_point import POINTS, is_point


class Need(Enum):
    """What a mitigation or a detector works on; for a mitigation, beside the two predictions of a step."""
    PREDICTIONS = "predictions"
    GRADIENTS = "gradients"
    ATTENTION = "attention"
    IMAGES = "generated images"
    TRAINING_IMAGES = "training images"
    ORDINARY_PROMPTS = "ordinary prompts"
    CALIBRATION = "a calibration file"


USERS = frozenset((Need.TRAINING_IMAGES, Need.CALIBRATION))  # what nobody but the user has
EVERY = tuple(FAMILIES)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a registry.

    Attributes
    ----------
    name : str
        What the command line calls it.
    home : str
        Module below `rotescope.mitigate` and class, as in "methods.transition:TransitionGuidance".
    settings : Mapping
        The authors' settings, all of them.
    paper : str
        Authors, venue, arXiv number.
    cost : str
        Denoiser rows against plain guidance, or what comes on top; for a detector the rows of a prompt.
    needs : frozenset of Need
        What it works on.
    families : tuple of str
        Model families, of FAMILIES, on which the tests run it.
    """
    name: str
    home: str
    settings: Mapping[str, typing.Any] = field(default_factory=dict)
    paper: str
    cost: str
    needs: frozenset[Need] = frozenset()
    families: tuple[str, ...] = EVERY

    @property
    def ready(self) -> bool:
        """Does it run under the authors' settings? Else it needs something of the user's own."""
        return not self.needs & USERS

    def load(self) -> type:
        """The class, whose module is imported now."""
        module, _, name = self.home.partition(":")
        return getattr(import_module(f"rotescope.mitigate.{module}"), name)

    def make(self, **changed: typing.Any) -> typing.Any:
        """An object with the authors' settings, some of them changed."""
        return self.load()(**{**self.settings, **changed})

    def as_json(self) -> dict[str, typing.Any]:
        """JSON types: needs as words."""
        return {"name": self.name, "settings": dict(self.settings), "paper": self.paper, "cost": self.cost,
                "needs": words_of(self.needs), "families": list(self.families), "ready": self.ready}


def words_of(needs):
    """A set of Need -> the words for them, in the order in which Need has them."""
    return [need.value for need in Need if need in needs]


def find_entry(text, entries, what):
    """NAME or NAME:key=value,… -> the entry and the text behind the colon. InputError for an unknown name."""
    name, _, settings = text.partition(":")
    if name not in entries:
        raise InputError(f"no {what} is called {name!r}: {suggestion(name, entries)}")
    return entries[name], settings


def check_text(text, entries, what):
    """Raise InputError for an unknown name or key of NAME:key=value,…, a key that is given twice, or a word where a
    number belongs; nothing is loaded."""
    entry, settings = find_entry(text, entries, what)
    for key, value in _parted(entry, settings).items():
        words = {e.settings[key] for e in entries.values() if isinstance(e.settings.get(key), str)}  # such as dynamic
        if type(entry.settings[key]) in (int, float) and value not in words and not (
                _is_number(value) or key in POINTS and is_point(value)):
            raise InputError(f"{entry.name}: {key}={value!r} is not a number")


def _is_number(text):
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def read_settings(entry, text):
    """'key=value,…' -> {key: value}. InputError for an unknown key, one given twice, or a bad value."""
    return {key: _value(entry, key, value) for key, value in _parted(entry, text).items()}


def _parted(entry, text):
    """'key=value,…' -> {key: text of its value}.

    A comma parts two settings only where a key and an equals sign follow, so that a value may hold one.
    """
    pairs = [_setting(entry, part) for part in re.split(r",(?=\s*\w+\s*=)", text) if part]
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice:
        raise InputError(f"{entry.name}: {twice} is given twice: give it once")
    return dict(pairs)


def _setting(entry, text):
    key, equals, value = (part.strip() for part in text.partition("="))
    if key not in entry.settings or not equals:
        known = f"write key=value; {suggestion(key, entry.settings)}" if entry.settings else "take the name alone"
        raise InputError(f"{entry.name}: {text!r} is not a setting: {known}")
    return key, value


def _value(entry, key, text):
    """The text of a setting -> what the class wants there."""
    kinds = typing.get_type_hints(entry.load())[key]
    kinds = typing.get_args(kinds) if isinstance(kinds, types.UnionType) else (kinds,)
    for kind in (k for k in (int, float, str) if k in kinds):
        try:
            found = kind(text)
        except ValueError:
            continue
        if isinstance(found, float) and not isfinite(found):
            raise InputError(f"{entry.name}: {key}={text} is no finite number: give one")
        return found
    if bool in kinds and text in ("true", "false"):
        return text == "true"
    wanted = " or ".join(k.__name__ for k in kinds if k is not types.NoneType)
    raise InputError(f"{entry.name}: {key}={text!r} is not a {wanted}")


def name_of(made, entries):
    """An object -> the name whose settings it has; else its class and the settings that are no defaults."""
    kind = f"{type(made).__module__}:{type(made).__name__}".removeprefix("rotescope.mitigate.")
    settings = {f.name: getattr(made, f.name) for f in fields(made)}
    known = next((e.name for e in entries.values() if e.home == kind and e.settings == settings), None)
    changed = ",".join(f"{f.name}={settings[f.name]}" for f in fields(made) if settings[f.name] != f.default)
    return known or f"{type(made).__name__}:{changed}".rstrip(":")
