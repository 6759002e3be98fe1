"""Detectors of memorization by name: one score a prompt, higher = more memorized.

    detector = get_detector("magnitude:n=1,steps=5")
    scores = list(score_prompts(pipe, prompts, detector))       # detectors/prompt_scores.py

A detector is a frozen dataclass of settings: `observe` says what it sees of each image, `score` makes one
number of a prompt's n images, `rows` is what a prompt costs. All but `recall` see no training image. No score
has a scale that carries over from one model to the next: compare prompts under one model, or calibrate on
prompts that are known to be ordinary. A new one is a file in this folder and an entry here.
"""
from __future__ import annotations

from typing import Any

from rotescope.common.errors import InputError
from rotescope.mitigate.contract.catalogue import EVERY, Entry, Need, find_entry, read_settings
from rotescope.mitigate.contract.text_inputs import SERVED

WEN, REN = "Wen et al., ICLR 2024, arXiv 2407.21720", "Ren et al., ECCV 2024, arXiv 2403.11052"
WEBSTER = "Webster 2023, arXiv 2305.08694"
GUIDED = {"n": 4, "num_inference_steps": 50, "guidance_scale": 7.5}  # seeds a prompt, and the run
OWN = GUIDED | {"guidance_scale": None}                              # the family's own scale


def _entry(name, home, paper, cost, needs, settings, families=("sd", "sdxl")):
    return Entry(name=name, home=f"detectors.{home}", settings=settings, paper=paper, cost=cost,
                 needs=frozenset(needs), families=families)


DETECTORS = {entry.name: entry for entry in (
    _entry("magnitude", "prediction_gap:Magnitude", WEN, "8 rows", [Need.PREDICTIONS], OWN | {"steps": 1}, EVERY),
    _entry("layout", "prediction_gap:Layout", "this project, after Wen et al.", "96 rows", [Need.PREDICTIONS],
           OWN | {"n": 16, "steps": 3, "window": 0.375}, EVERY),
    _entry("drop", "prediction_gap:Drop", "this project, after Jain et al., CVPR 2025, arXiv 2411.16738",
           "120 rows", [Need.PREDICTIONS], OWN | {"num_inference_steps": 25, "steps": 15}, EVERY),
    _entry("anisotropy", "whitebox:Anisotropy", "Asthana & Belagiannis, ICLR 2026, arXiv 2601.20642",
           "16 rows", [Need.PREDICTIONS], GUIDED | {"norm_weight": 1.0, "cosine_weight": 2.0}),
    _entry("sail", "whitebox:HessianVector", "Jeon et al., ICML 2025, arXiv 2412.04140", "16 rows",
           [Need.GRADIENTS], GUIDED),
    _entry("bright-ending", "whitebox:BrightEnding", "Chen et al., ICLR 2025, arXiv 2410.21665", "408 rows",
           [Need.PREDICTIONS, Need.ATTENTION], GUIDED),
    _entry("entropy-d", "whitebox:AttentionEntropy", REN, "400 rows", [Need.ATTENTION],
           GUIDED | {"metric": "D", "layer": 3}),
    _entry("entropy-e", "whitebox:AttentionEntropy", REN, "8 rows", [Need.ATTENTION],
           GUIDED | {"metric": "E", "layer": 3}),
    _entry("confidence", "whitebox:Confidence", WEBSTER, "8 rows", [Need.PREDICTIONS], GUIDED),
    _entry("edges", "generated_images:EdgeAgreement", WEBSTER, "8 rows", [Need.IMAGES],
           OWN | {"num_inference_steps": 1, "threshold": 1.5}, tuple(f for f in EVERY if f != "pixart")),
    _entry("cliques", "generated_images:Cliques", "Carlini et al., USENIX Security 2023, arXiv 2301.13188",
           "1600 rows", [Need.IMAGES], OWN | {"n": 16, "clique": 4, "tiles": 4}, EVERY),
    _entry("recall", "training_image_recall:Recall",
           "this project, after Zhai et al., NeurIPS 2024, arXiv 2405.14800", "8 rows",
           [Need.PREDICTIONS, Need.TRAINING_IMAGES], {"n": 4, "timestep": 700}, SERVED),
)}


def list_detectors() -> list[Entry]:
    """Every detector: name, settings, paper, cost in rows a prompt, needs, families, and whether it is ready.

    Returns
    -------
    list of Entry
        In the order in which `rotescope detect --detector all` takes them.

    Examples
    --------
    >>> [entry.name for entry in list_detectors()][:3]
    ['magnitude', 'layout', 'drop']
    """
    return list(DETECTORS.values())


def get_detector(detector: Any) -> Any:
    """A detector by its name, perhaps with other settings than the authors'.

    Parameters
    ----------
    detector : str or a detector
        A name of `list_detectors`; a name with settings, as in "magnitude:n=1,steps=5"; or an object, which is
        given back.

    Returns
    -------
    a frozen dataclass of settings, with `observe`, `score` and `rows`

    Raises
    ------
    InputError
        For an unknown name, key or value.

    Examples
    --------
    >>> get_detector("magnitude:n=1,steps=5").rows
    10
    """
    if not isinstance(detector, str):
        if not (hasattr(detector, "families") and hasattr(detector, "n")):
            raise InputError(f"{detector!r} is no detector: give a name of list_detectors, or what get_detector gives")
        return detector
    entry, settings = find_entry(detector, DETECTORS, "detector")
    return entry.make(**read_settings(entry, settings))
