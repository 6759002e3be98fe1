"""Configurations for a single file, as a folder that diffusers reads: the user's own, or one that ships with the package.

configs/*.json hold the sizes and settings of SD 1.5, SD 2.1 (768 px, v-prediction) and SDXL. CLIP's vocabulary
comes with open_clip.
"""
import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rotescope.common.errors import InputError

CONFIGS = Path(__file__).resolve().parent / "configs"
OF_FAMILY = {"Stable Diffusion 1": "sd15", "Stable Diffusion 2": "sd21", "SDXL": "sdxl"}
MERGES = 49408 - 2 * 256 - 2  # of CLIP's tokens: all but the bytes, the bytes that end a word, start and end
START, END = "<|startoftext|>", "<|endoftext|>"


@contextmanager
def configuration_folder(family: str, given: str | None) -> Iterator[Path]:
    """The folder with a model_index.json, configs and tokenizers for a family: `given`, or a temporary one.

    Raises
    ------
    InputError
        If none is given and none ships for this family.
    """
    if given:
        yield Path(given)
        return
    name = OF_FAMILY.get(family)
    if name is None:
        raise InputError(f"no configuration ships for {family}: name a folder in diffusers' layout of that family with "
                         "--model_config; of its weights none are needed")
    with TemporaryDirectory(prefix="rotescope-configuration-") as folder:
        write_configuration(json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8")), Path(folder))
        yield Path(folder)


def write_configuration(parts: dict[str, dict[str, Any]], folder: Path) -> None:
    """{part: its configuration} -> a folder in diffusers' layout, with tokenizers and without weights."""
    for part, settings in parts.items():
        if part == "model_index":
            (folder / "model_index.json").write_text(json.dumps(settings))
            continue
        (folder / part).mkdir()
        if part.startswith("tokenizer"):
            write_clip_tokenizer(folder / part, settings)
        else:
            name = "scheduler_config.json" if part == "scheduler" else "config.json"
            (folder / part / name).write_text(json.dumps(settings))


def write_clip_tokenizer(folder: Path, settings: dict[str, Any]) -> None:
    """CLIP's vocabulary in the files that CLIPTokenizer reads.

    Tokens stand in this order (Radford et al. 2021, arXiv 2103.00020, section 2.4): the 256 bytes, the same
    at the end of a word, what each merge makes, start, end.
    """
    merges = clip_merges()
    letters = [*_bytes_as_letters()]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{one} {two}\n" for one, two in merges), encoding="utf-8")
    about = {"tokenizer_class": "CLIPTokenizer", "bos_token": START, "eos_token": END, "unk_token": END, "errors": "replace",
             "add_prefix_space": False, "do_lower_case": True, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "special_tokens_map.json").write_text(json.dumps({key: about[key] for key in (
        "bos_token", "eos_token", "unk_token", "pad_token")}))


@lru_cache(maxsize=1)
def clip_merges() -> list[tuple[str, str]]:
    """The merges of CLIP's byte-pair encoding, in their order, from the file that open_clip installs."""
    try:
        packed = (files("open_clip") / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    except (ModuleNotFoundError, OSError) as error:
        raise InputError("CLIP's vocabulary is missing: pip install open_clip_torch, or name a model folder that has "
                         "tokenizers with --model_config") from error
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[1:MERGES + 1]
    return [(one, two) for one, _, two in (line.partition(" ") for line in lines)]


def _bytes_as_letters() -> Iterator[str]:
    """The 256 bytes as visible letters, in the order of CLIP's tokens: printable ones first, then the rest from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    yield from map(chr, printable)
    yield from (chr(256 + n) for n in range(256 - len(printable)))
