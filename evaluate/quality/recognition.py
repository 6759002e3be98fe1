"""Where a text-image metric is at home: whether it recognises training images by their own captions.

The metric of a model is found by its lineage, and a fine-tune takes its model elsewhere: the embedded metric, say, knows a few
drawn objects on plain grounds, and says nothing of photographs.
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rotescope.datasets.images.sampling import evenly_spread
from rotescope.evaluate.quality.alignment import find_alignment, get_alignment

LOOKED_AT = 100  # training images, at most
FEWEST = 3       # with different captions: of two, one in four such sets is recognised by chance
AT_HOME = 0.75   # the least share of pairs that is recognised
SIGMAS = 3       # above what chance brings


@dataclass(frozen=True)
class Recognition:
    """How often an image lies closer to its own caption than to another's."""
    share: float  # 0.5 by chance, 1 where every image knows its caption
    n: int        # images, each with a caption of its own

    @property
    def at_home(self) -> bool:
        """Whether the metric knows such pictures: by much more than half, and more than chance brings.

        The rank of a caption among n is uniform by chance, with variance 1/12; the mean of n such shares has 1 / (12 n).
        """
        return self.n >= FEWEST and self.share >= max(AT_HOME, min(1.0, 0.5 + SIGMAS / math.sqrt(12 * self.n)))

    @property
    def note(self) -> str:
        """Why the metric is left out."""
        if self.n < FEWEST:
            return ("The text-image metric that comes with this model is left out: the training images have fewer than "
                    f"{FEWEST} different captions to try it on. rotescope score takes another by --alignment.")
        return (f"The text-image metric that comes with this model is left out: it is not at home on these pictures. Of {self.n} "
                f"training images, it puts {self.share:.0%} of the others' captions behind the own one (50 % is chance). "
                "rotescope score takes another by --alignment.")


def recognition(aligner: Any, examples: Sequence[Any]) -> Recognition:
    """An Alignment on training images, Examples with `captions` and `open` -> Recognition on LOOKED_AT of different captions."""
    own = list({e.captions[0]: e for e in examples if e.captions}.values())
    own = [own[i] for i in evenly_spread(len(own), LOOKED_AT)]
    if len(own) < 2:
        return Recognition(0.5, len(own))
    images, texts = aligner.images([e.open() for e in own]), aligner.texts([e.captions[0] for e in own])
    return Recognition(share_recognised(images, texts), len(own))


def chosen_alignment(name: str, model: str | None, examples: Sequence[Any]) -> tuple[Any, tuple[str, ...]]:
    """What a user names, as get_alignment takes it -> the Alignment or None, and notes. Under auto it is the one that the model's
    lineage names, where that is at home on these training images; where it is not, a note says so."""
    if name != "auto":
        return get_alignment(name), ()
    aligner = get_alignment(find_alignment(model))
    if aligner is None:
        return None, ()
    found = recognition(aligner, examples)
    return (aligner, ()) if found.at_home else (None, (found.note,))


def share_recognised(images: np.ndarray, texts: np.ndarray) -> float:
    """Images (n, d) and their captions (n, d) -> share of pairs of an image and another's caption in which the own one is closer;
    a tie counts half."""
    images, texts = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6) for x in (images, texts))
    similarity = images @ texts.T                                       # (n, n), the own captions on the diagonal
    own, others = np.diag(similarity)[:, None], ~np.eye(len(similarity), dtype=bool)
    return float(((own > similarity) + (own == similarity) / 2)[others].mean())
