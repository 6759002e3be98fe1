"""The file of captions that lies beside a picture: a.txt, a.caption or a.json beside a.jpg; its lines, its
tags, its trigger."""
import json
import random
from collections.abc import Mapping
from pathlib import Path

from rotescope.common.errors import InputError
from rotescope.common.wording import printable
from rotescope.datasets.captions.text_encoding import read_text
from rotescope.models.seeds import hashed_integer

EXTENSIONS = (".txt", ".caption", ".json")   # in order of preference
LINES = ("first", "all", "joined")
SHUFFLED = "tags are shuffled at training"   # how a manifest's note begins where that is so
LARGEST = 1_000_000   # bytes of a caption file
CAPTION_KEYS = ("caption", "captions", "text", "prompt")


def read_side_file(file: Path, lines: str = "all", encoding: str = "") -> tuple[str, ...]:
    """What a file beside a picture says of it.

    Parameters
    ----------
    file : Path
        Text, or JSON with `caption` or `tags`.
    lines : str
        What several lines of text mean. "all": each is a caption; "first": the first that is not empty is the
        caption; "joined": the whole is one caption.
    encoding : str
        Of the file; UTF-8 and what shows itself unless given.

    Returns
    -------
    tuple of str
        Captions; none where the file is empty.

    Raises
    ------
    InputError
        If it cannot be read as text or JSON.
    """
    if file.stat().st_size > LARGEST:
        raise InputError(f"{printable(str(file))} has {file.stat().st_size:,} bytes, more than captions take: mend "
                         "it or leave it out")
    text = read_text(file, encoding)
    if file.suffix.lower() != ".json":
        return split_lines(text, lines)
    try:
        return said_in(json.loads(text), ", ")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{printable(str(file))} is no JSON ({error}): mend it or leave it out") from error


def split_lines(text: str, lines: str = "all") -> tuple[str, ...]:
    """Text -> captions, as read_side_file has it."""
    if lines == "joined":
        return (text.strip(),) if text.strip() else ()
    found = tuple(line.strip() for line in text.split("\n") if line.strip())
    return found[:1] if lines == "first" else found


def said_in(about, separator: str = ",") -> tuple[str, ...]:
    """What a JSON value says of a picture: a text, a list of texts, or an object with `caption` or `tags` ->
    captions.

    Where it has both, they are one caption, the tags behind, as kohya's metadata mean it; `separator` stands
    between.
    """
    if not isinstance(about, Mapping):
        return _texts(about)
    captions = _texts(next((about[key] for key in CAPTION_KEYS if about.get(key)), ""))
    tags = about.get("tags") or ""
    joined = ", ".join(_texts(tags)) if isinstance(tags, list) else "".join(_texts(tags))
    if not captions or not joined:
        return captions or ((joined,) if joined else ())
    return tuple(f"{caption}{separator}{joined}" for caption in captions)


def _texts(value):
    """Whole characters only; no empty text."""
    several = value if isinstance(value, list) else [value]
    texts = (t.encode(errors="replace").decode().strip() for t in several if isinstance(t, str))
    return tuple(t for t in texts if t)


# ----- what trainers do to a caption

def with_trigger(caption: str, trigger: str) -> str:
    """`[trigger]` and `[name]` expanded; a trigger that the caption then lacks comes first, as ai-toolkit has
    it."""
    expanded = caption.replace("[trigger]", trigger).replace("[name]", trigger)
    return expanded if not trigger or trigger in expanded else f"{trigger} {expanded}".strip()


def shuffle_tags(caption: str, keep: int = 0, separator: str = ",") -> str:
    """The caption with its tags once in another order, always the same for a caption; the first `keep` stay.

    As it is where fewer than two tags may move.
    """
    tags = [tag.strip() for tag in caption.split(separator) if tag.strip()]
    head, rest = tags[:keep], tags[keep:]
    if len(set(rest)) < 2:
        return caption
    mixed = list(rest)
    random.Random(hashed_integer(caption)).shuffle(mixed)
    mixed = mixed if mixed != rest else [*rest[1:], rest[0]]
    return (f"{separator} " if separator.strip() else separator).join([*head, *mixed])


def shuffle_note(keep: int) -> str:
    """What a manifest notes of a picture whose tags are shuffled."""
    return f"{SHUFFLED}, the first {keep} stay" if keep else SHUFFLED


def from_file_name(stem: str) -> str:
    """A file's name as a caption: underscores are spaces."""
    return " ".join(stem.replace("_", " ").split())
