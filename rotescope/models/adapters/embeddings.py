"""Textual inversions on a pipeline: learned vectors that stand for a token (Gal et al. 2022, arXiv 2208.01618).

Stable Diffusion: one tensor (vectors, width), under any key. SDXL: `clip_l` and `clip_g`, one for each text
encoder. Several vectors stand for one token: the token, token_1, token_2 and so on.
"""
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rotescope.common.console import say
from rotescope.common.errors import InputError
from rotescope.models.adapters.layer_names import parse_key
from rotescope.models.tensor_files import load_tensors, read_tensor_file

ENCODER_OF = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
PLAIN = ("emb_params", "string_to_param", "*")  # keys that are no token
BUNDLE = re.compile(r"^bundle_emb\.([^.]+)\.(?:string_to_param\.)?(.+)$")


def add_embedding(pipe: Any, token: str | None, file: str | Path) -> str:
    """Add the textual inversion of a file to a pipeline, under `token`, the one inside, or the file's name -> the token.

    Raises InputError, one line, for a file of another kind or of other widths than the pipeline's text encoders.
    """
    file = Path(file)
    tensors = load_tensors(file)
    if any(map(parse_key, tensors)):
        raise InputError(f"{file} is an adapter, no textual inversion: name it with --lora")
    word = token or _word_inside(tensors) or file.stem
    add_vectors(pipe, word, vectors_of(file, tensors), file)
    return word


def word_of(token: str | None, file: str | Path) -> str:
    """What a prompt calls the textual inversion of a file by: `token`, the one inside, or the file's name."""
    return token or _word_inside(read_tensor_file(file).shapes) or Path(file).stem


def _word_inside(keys):
    return next((key for key in keys if "." not in key and key not in (*ENCODER_OF, *PLAIN)), None)


def add_bundled(pipe: Any, tensors: Mapping[str, torch.Tensor], file: Path) -> list[str]:
    """Add the textual inversions that go with a LoRA -> their tokens."""
    words: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if found := BUNDLE.match(key):
            words.setdefault(found[1], {})[found[2]] = tensor
    for word, found in words.items():
        add_vectors(pipe, word, vectors_of(file, found), file)
    return list(words)


def vectors_of(file: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """-> {"" or a text encoder: (vectors, width)}; "" stands for the first whose width fits."""
    found = {ENCODER_OF.get(key, ""): w for key, w in tensors.items() if w.is_floating_point() and w.dim() in (1, 2)}
    if not found or len(found) < len(tensors) or len({w.shape[0] for w in found.values() if w.dim() == 2}) > 1:
        raise InputError(f"{file} is no textual inversion: it holds {', '.join(list(tensors)[:3])}; name a file with one "
                         "tensor, or with clip_l and clip_g")
    return {name: w.reshape(-1, w.shape[-1]) for name, w in found.items()}


def add_vectors(pipe: Any, word: str, vectors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Give each text encoder its vectors for a word. InputError, before anything is changed, where widths differ."""
    encoders = [name for name in ("text_encoder", "text_encoder_2") if hasattr(getattr(pipe, name, None), "get_input_embeddings")]
    widths = {name: getattr(pipe, name).get_input_embeddings().weight.shape[1] for name in encoders}
    placed = {name or next((e for e in encoders if widths[e] == w.shape[1]), ""): w for name, w in vectors.items()}
    wrong = next((w for name, w in placed.items() if widths.get(name) != w.shape[1]), None)
    if wrong is not None:
        raise InputError(f"{file} is a textual inversion of another model: its vectors have {wrong.shape[1]:,} numbers, and "
                         f"the text encoders here take {', '.join(f'{width:,}' for width in widths.values())}")
    n = max(len(found) for found in placed.values())
    words = [word, *(f"{word}_{i}" for i in range(1, n))]
    tokenizers = {name: getattr(pipe, name.replace("text_encoder", "tokenizer")) for name in placed}
    if taken := next((w for w in words for tokenizer in tokenizers.values() if w in tokenizer.get_vocab()), None):
        raise InputError(f"{file}: the tokenizer has a token {taken} of its own; name another with --embedding TOKEN={file}")
    for name, found in placed.items():
        _add(tokenizers[name], getattr(pipe, name), words[:len(found)], found)
    say(f"{file}: the word {word} in a prompt calls it ({n} vector{'' if n == 1 else 's'})")


def _add(tokenizer: Any, encoder: Any, words: list[str], vectors: torch.Tensor) -> None:
    tokenizer.add_tokens(words)
    ids = tokenizer.convert_tokens_to_ids(words)
    if max(ids) >= encoder.get_input_embeddings().num_embeddings:
        encoder.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    table = encoder.get_input_embeddings().weight
    with torch.no_grad():
        table[ids] = vectors.to(table)
