"""Prompts in, from a text file, a table or a manifest."""
import csv
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from rotescope.common.errors import InputError
from rotescope.common.parquet import read_schema, read_table
from rotescope.datasets.captions.side_files import SHUFFLED
from rotescope.datasets.manifest import Manifest
from rotescope.models.model_options import BASE

HELDOUT = "heldout"  # the group of captions that no training image bears

@dataclass(frozen=True)
class Prompt:
    text: str
    group: str = ""       # "duplicated", "control", or the user's own
    image_id: str = ""    # the training image that the prompt belongs to, if known
    size: tuple[int, int] | None = None   # width and height of its own images, in pixels; None: the run's


@dataclass(frozen=True, eq=False)
class EmbeddedPrompt(Prompt):
    """A prompt of which the model sees an embedding, not the text."""
    embedding: torch.Tensor | None = None  # (tokens, width)
    words: str = ""                        # the text whose pooled embedding and mask go with it, where a family has them


def read_prompts(file):
    """.txt (one a line), .csv, .jsonl or .parquet with `prompt` or `caption`, perhaps `group`, `image_id` -> list of Prompt."""
    file = Path(file)
    if not file.is_file():
        raise InputError(f"no prompts file at {file}: name a .txt, .csv, .jsonl or .parquet file")
    readers = {".txt": _lines, ".csv": _csv, ".jsonl": _jsonl, ".parquet": lambda f: read_table(f).to_pylist()}
    if file.suffix not in readers:
        raise InputError(f"{file}: prompts come as .txt, .csv, .jsonl or .parquet")
    try:
        rows = readers[file.suffix](file)
    except (ValueError, OSError) as error:  # json, csv, unicode and arrow errors are ValueErrors
        raise InputError(f"{file} cannot be read as {file.suffix[1:]} ({error})") from error
    prompts = [Prompt(_text(row, file, i), row.get("group") or "", row.get("image_id") or "")
               for i, row in enumerate(rows, 1)]
    if not prompts:
        raise InputError(f"{file} holds no prompt")
    return prompts


def caption_prompts(manifest, groups=("duplicated", "control"), limit=None):
    """The first caption of each image of the named groups; of every image where none has a group. At most `limit` a group."""
    grouped = any(e.group in groups for e in manifest)
    return at_most([Prompt(e.captions[0], e.group, e.image_id) for e in manifest if not grouped or e.group in groups], limit)


def shuffled_prompts(manifest, groups=("duplicated", "control")):
    """The first caption with its tags once in another order, of each image whose tags are shuffled at training; of the same
    images as caption_prompts has."""
    named = {p.image_id for p in caption_prompts(manifest, groups)}
    return [Prompt(e.captions[1], e.group, e.image_id) for e in manifest
            if e.note.startswith(SHUFFLED) and len(e.captions) > 1 and e.image_id in named]


def further_prompts(manifest, groups=("duplicated", "control")):
    """The captions after the first of each image that caption_prompts has, without the shuffled one that shuffled_prompts has."""
    known = {(p.image_id, p.text) for p in caption_prompts(manifest, groups) + shuffled_prompts(manifest, groups)}
    named = {image_id for image_id, _ in known}
    return [Prompt(text, e.group, e.image_id) for e in manifest if e.image_id in named
            for text in e.captions if (e.image_id, text) not in known]


@lru_cache(maxsize=1)
def embedded_captions():
    """The captions of the embedded held-out data, each once: ordinary prompts for the embedded model."""
    return list(dict.fromkeys(p.text for p in read_prompts(BASE.parent.parent / "datasets/emoji/heldout.parquet")))


def is_embedded(tokenizer):
    """Does it know the tokens of the embedded model's, which a fine-tune keeps?"""
    return tokenizer.get_vocab().keys() == json.loads((BASE / "tokenizer/vocab.json").read_text(encoding="utf-8")).keys()


def at_most(prompts, limit=None):
    """The first `limit` prompts of each group."""
    chosen, counts = [], {}
    for p in prompts:
        counts[p.group] = counts.get(p.group, 0) + 1
        if limit is None or counts[p.group] <= limit:
            chosen.append(p)
    return chosen


def _text(row, file, number):
    text = row.get("prompt", row.get("caption"))
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{file}: row {number} has no prompt: give each row a `prompt` or a `caption`")
    return text


def _lines(file):
    return [{"prompt": line} for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _csv(file):
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _jsonl(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def is_manifest(file):
    return Path(file).suffix == ".parquet" and Path(file).is_file() and "captions" in read_schema(file).names


def load_prompts(file, groups, limit=None):
    """A prompts file or a manifest -> list of Prompt, at most `limit` a group."""
    if is_manifest(file):
        return caption_prompts(Manifest.load(file), groups, limit)
    return at_most(read_prompts(file), limit)
