"""Captions perturbed at inference: words or numbers put in, words repeated. On every pipeline that takes prompts."""
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

from rotescope.errors import InputError
from rotescope.mitigate.mitigation import Mitigation

INSERTIONS = 4         # at inference
CLIP_TOKENS = 49_400   # the authors draw token numbers below this one
NUMBERS = 100_000      # added numbers are below it


# ----- (text, rng) -> text

def add_words(text, rng, n=INSERTIONS, vocabulary=()):
    """Random token addition: n random words anywhere."""
    return _inserted(text, rng, n, lambda: _draw(vocabulary, rng))


def add_numbers(text, rng, n=INSERTIONS):
    """Random number addition: n whole numbers from 0 to 99999 anywhere."""
    return _inserted(text, rng, n, lambda: str(rng.integers(NUMBERS)))


def repeat_words(text, rng, n=INSERTIONS):
    """Caption word repetition: n times one of its own words, anywhere."""
    own = text.split()
    return _inserted(text, rng, n if own else 0, lambda: _draw(own, rng))


def _inserted(text, rng, n, word):
    words = text.split()
    for _ in range(n):
        words.insert(rng.integers(len(words) + 1), word())
    return " ".join(words) if n else text


def _draw(items, rng):
    return items[rng.integers(len(items))]


@dataclass(frozen=True)
class Perturbation:
    change: Callable[..., str]
    needs_vocabulary: bool = False


PERTURBATIONS = {
    "random_token_addition": Perturbation(add_words, True),
    "random_number_addition": Perturbation(add_numbers),
    "caption_word_repetition": Perturbation(repeat_words),
}


def perturbation(name, n=INSERTIONS, vocabulary=()):
    """-> (text, rng) -> text; InputError for a name that is none."""
    if name not in PERTURBATIONS:
        raise InputError(f"no caption perturbation {name!r}: take one of {', '.join(PERTURBATIONS)}")
    kind = PERTURBATIONS[name]
    return partial(kind.change, n=n, **({"vocabulary": vocabulary} if kind.needs_vocabulary else {}))


@lru_cache(maxsize=4)
def token_words(tokenizer, below=CLIP_TOKENS):
    """The words that a tokenizer's single tokens stand for, in order of token."""
    special = set(tokenizer.all_special_ids)
    words = (tokenizer.decode([token]).strip() for token in range(min(below, len(tokenizer))) if token not in special)
    return tuple(dict.fromkeys(word for word in words if word))


# ----- on a pipeline

@dataclass(frozen=True)
class CaptionPerturbation(Mitigation):
    """Somepalli et al., Understanding and Mitigating Copying in Diffusion Models, NeurIPS 2023, section 5.

    kind: random_token_addition (words drawn from the pipeline's own tokenizer), random_number_addition or
    caption_word_repetition; n insertions, 4 in the authors' code. Each image gets its own: its seed and its prompt decide.
    """
    kind: str = "random_token_addition"
    n: int = INSERTIONS

    def __post_init__(self):
        perturbation(self.kind)
        if self.n < 1:
            raise InputError(f"n={self.n}: put in one word or more")

    def prepare(self, call):
        vocabulary = token_words(call.pipe.tokenizer) if PERTURBATIONS[self.kind].needs_vocabulary else ()
        change = perturbation(self.kind, self.n, vocabulary)
        call.prompts = [change(text, call.rng(i, self.kind)) for i, text in enumerate(call.prompts)]
