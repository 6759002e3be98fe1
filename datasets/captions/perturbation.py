"""(text, rng) -> text: the caption perturbations, for training and for inference alike, and their kin on embeddings.

All but `replace_words` are Somepalli et al., Understanding and Mitigating Copying in Diffusion Models (NeurIPS 2023,
arXiv 2305.20086), with the numbers of the authors' code: 4 insertions at inference, 2 in training, where a caption is
perturbed with probability 0.1. `rng` is a numpy Generator, and the same state gives the same text.
"""
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rotescope.common.errors import InputError

INSERTIONS, TRAIN_INSERTIONS, TRAIN_PROBABILITY = 4, 2, 0.1
CLIP_TOKENS = 49_400   # the authors draw token numbers below this one: nearly all of CLIP's, none of its special ones
NUMBERS = 100_000      # added numbers are below it


def add_words(text, rng, n=INSERTIONS, vocabulary=()):
    """Random token addition (RTA): n random words anywhere."""
    return _inserted(text, rng, n, lambda words: _draw(vocabulary, rng))


def add_numbers(text, rng, n=INSERTIONS):
    """Random number addition (RNA): n whole numbers from 0 to 99999 anywhere; they say less than words would."""
    return _inserted(text, rng, n, lambda words: str(rng.integers(NUMBERS)))


def repeat_words(text, rng, n=INSERTIONS):
    """Caption word repetition (CWR): n times one of its own words, anywhere; a text without words stays as it is."""
    own = text.split()
    return _inserted(text, rng, n if own else 0, lambda words: _draw(own, rng))


def replace_caption(text, rng, n=INSERTIONS, vocabulary=()):
    """Random caption replacement (RC): n random words in place of the whole text."""
    return " ".join(_draw(vocabulary, rng) for _ in range(n))


def replace_words(text, rng, n=INSERTIONS, vocabulary=()):
    """n of the text's words, or all if it has fewer, replaced by random ones where they stand: the length stays."""
    words = text.split()
    for place in rng.permutation(len(words))[:n]:
        words[place] = _draw(vocabulary, rng)
    return " ".join(words) if n else text


def _inserted(text, rng, n, word):
    """n times word(words so far) at a random place between the words."""
    words = text.split()
    for _ in range(n):
        words.insert(rng.integers(len(words) + 1), word(words))
    return " ".join(words) if n else text


def _draw(items, rng):
    return items[rng.integers(len(items))]


# ----- by name

@dataclass(frozen=True)
class Perturbation:
    """One way to change a caption."""
    change: Callable[..., str]
    needs_vocabulary: bool = False
    train_n: int = TRAIN_INSERTIONS   # n in training; INSERTIONS at inference


PERTURBATIONS = {
    "random_token_addition": Perturbation(add_words, True),
    "random_number_addition": Perturbation(add_numbers),
    "caption_word_repetition": Perturbation(repeat_words),
    "random_caption_replacement": Perturbation(replace_caption, True, INSERTIONS),
    "random_word_replacement": Perturbation(replace_words, True),
}


def perturbation(name, n=INSERTIONS, vocabulary=(), probability=1.0):
    """-> (text, rng) -> text; with `probability` below 1 it leaves the other texts alone. InputError on a bad name or number."""
    if name not in PERTURBATIONS:
        raise InputError(f"no caption perturbation {name!r}: take one of {', '.join(PERTURBATIONS)}")
    if n < 0 or not 0 <= probability <= 1:
        raise InputError(f"{name}: n is a number from 0 on and the probability a share, and not {n} and {probability}")
    kind = PERTURBATIONS[name]
    if kind.needs_vocabulary and not vocabulary:
        raise InputError(f"{name} draws from a vocabulary, and that is empty")
    change = partial(kind.change, n=n, **({"vocabulary": vocabulary} if kind.needs_vocabulary else {}))
    return lambda text, rng: change(text, rng) if rng.random() < probability else text


def read_words(tokenizer):
    """The folder of a tokenizer or of a model, or a tokenizer's name on the hub -> token_words of it; else InputError."""
    from transformers import AutoTokenizer
    inner = Path(tokenizer) / "tokenizer"
    try:
        return token_words(AutoTokenizer.from_pretrained(str(inner if inner.is_dir() else tokenizer)))
    except Exception as error:   # no such folder, no network, a damaged file: one kind each
        raise InputError(f"no tokenizer at {tokenizer} ({error}): name its folder, or that of a model") from error


def token_words(tokenizer, below=CLIP_TOKENS):
    """The words that a tokenizer's single tokens stand for, in order of token: what the authors draw from."""
    special = set(tokenizer.all_special_ids)
    words = (tokenizer.decode([token]).strip() for token in range(min(below, len(tokenizer))) if token not in special)
    return list(dict.fromkeys(word for word in words if word))


# ----- on embeddings

def add_noise(embeddings, rng, scale=0.1):
    """Gaussian noise (GN): e + λ n with n ~ N(0, I) and λ = `scale`, 0.1 at inference; torch, any shape."""
    return embeddings + scale * embeddings.new_tensor(rng.standard_normal(tuple(embeddings.shape)))


def mix_up(first, second, share):
    """Mix-up of two captions' embeddings: λ e₁ + (1 − λ) e₂; torch (B, …), λ (B,). The authors draw λ from Beta(m, 1)."""
    share = share.view(-1, *[1] * (first.dim() - 1))
    return share * first + (1 - share) * second
