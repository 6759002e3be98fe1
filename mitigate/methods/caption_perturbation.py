"""Captions perturbed at inference: words or numbers put in, words repeated. On every pipeline that takes prompts."""
from dataclasses import dataclass
from functools import lru_cache

from rotescope.common.errors import InputError
from rotescope.datasets.captions.perturbation import INSERTIONS, PERTURBATIONS, token_words
from rotescope.mitigate.contract.mitigation import Mitigation

INFERENCE_KINDS = ("random_token_addition", "random_number_addition", "caption_word_repetition")
vocabulary_of = lru_cache(maxsize=4)(token_words)


@dataclass(frozen=True)
class CaptionPerturbation(Mitigation):
    """Somepalli et al., Understanding and Mitigating Copying in Diffusion Models, NeurIPS 2023, section 5.

    kind: random_token_addition (words drawn from the pipeline's own tokenizer), random_number_addition or
    caption_word_repetition; n insertions, 4 in the authors' code. Each image gets its own: its seed and its prompt decide.
    """
    kind: str = "random_token_addition"
    n: int = INSERTIONS

    def __post_init__(self):
        if self.kind not in INFERENCE_KINDS:
            raise InputError(f"no caption perturbation {self.kind!r}: take one of {', '.join(INFERENCE_KINDS)}")
        if self.n < 1:
            raise InputError(f"n={self.n}: put in one word or more")

    def prepare(self, call):
        kind = PERTURBATIONS[self.kind]
        drawn = {"vocabulary": vocabulary_of(_tokenizer_of(call.pipe))} if kind.needs_vocabulary else {}
        call.replace_prompts([kind.change(text, call.rng(i, self.kind), self.n, **drawn) for i, text in enumerate(call.prompts)])


def _tokenizer_of(pipe):
    """A pipeline's tokenizer, or its processor's; InputError where it has neither."""
    holders = (pipe, getattr(pipe, "processor", None))
    found = next((held for holder in holders if (held := getattr(holder, "tokenizer", None)) is not None), None)
    if found is None:
        raise InputError(f"{type(pipe).__name__} has no tokenizer to draw words from: take another mitigation")
    return found
