"""What the page's tables and notes say beside the figures themselves. Pure: plain values in, values out."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

WORDS = {  # part of a label -> the term and what it means, in the order in which a reader needs them
    "stp": (
        "stp, static transition point",
        "delayed guidance: the caption has no pull until the transition τ, which is the same for every image.",
    ),
    "dtp": (
        "dtp, dynamic transition point",
        "delayed guidance whose transition τ is found for each image: where its "
        "prediction gap has its first minimum.",
    ),
    "og": (
        "og, opposite guidance",
        "before the transition τ the image is pushed away from its caption, not merely left alone.",
    ),
    "layout": (
        "layout",
        "only where things stand is pushed away; the mean colour of the picture is guided as usual.",
    ),
}
TRANSITION = (
    "Transition, τ",
    "the timestep from which guidance is as usual; “until t = 600” in the tables is τ = 600. "
    "Timesteps run from 999, noise, down to 0, the image.",
)


def prompts_together(smallest: float, methods: Iterable[str], fdr: float) -> int:
    """How many prompts of one method must share the smallest p-value before any of them is significant.

    Parameters
    ----------
    smallest
        The smallest p-value that the null pictures can give.
    methods
        The method of each prompt that was tested; p-values are adjusted over the prompts of a method.
    fdr
        False discovery rate.

    Returns
    -------
    int
        The least k with smallest · m / k ≤ fdr, for the m prompts of the method that has the most.

    References
    ----------
    Benjamini and Hochberg 1995, the step-up procedure.
    """
    most = max(Counter(methods).values(), default=0)
    return max(math.ceil(smallest * most / fdr - 1e-9), 1)


def method_words(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    """{method: label} -> (term, meaning) of each term that a label uses, and of the transition where there is
    one."""
    used = re.split(r"[^a-z]+", " ".join(labels.values()))
    found = [words for part, words in WORDS.items() if part in used]
    return [*found, TRANSITION] if found else []
