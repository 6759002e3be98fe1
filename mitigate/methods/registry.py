"""Every mitigation by name: where it stands, what it is set to, where it comes from, what it costs and needs.

A new one is a file in this folder and an entry here. Its class is loaded when an object is wanted.
"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rotescope.common.errors import InputError
from rotescope.mitigate.contract.catalogue import EVERY, Entry, Need, find_entry, read_settings

if TYPE_CHECKING:
    from rotescope.datasets.manifest import Manifest
    from rotescope.mitigate.contract.mitigation import Mitigation

SOMEPALLI = "Somepalli et al., NeurIPS 2023, arXiv 2305.20086"
KIM = "Kim & No, CVPR 2026 Findings, arXiv 2605.02908"
HAN = "Han et al., NeurIPS 2025, arXiv 2510.08625"
ZHAO = "Zhao et al., ICML 2026, arXiv 2603.00133"
JAIN = "Jain et al., CVPR 2025, arXiv 2411.16738"
OURS = f"this project, after {JAIN}"
SHAPES = ("invlinear", "linear", "cosine", "sine", "v-shape", "a-shape")


def _entry(name, home, settings, paper, cost, *needs, families=EVERY):
    return Entry(name=name, home=f"methods.{home}", settings=settings, paper=paper, cost=cost,
                 needs=frozenset(needs), families=families)


def _transition(name, paper=JAIN, cost="1 ×", **changed):
    """An entry of TransitionGuidance: its defaults, some of them changed."""
    defaults = {"before": 0.0, "transition": 500, "latest": 500, "after": None, "ordinary_gap": 0.0,
                "min_drop": 1e-4, "earliest": 1000, "colour": None}
    return _entry(name, "transition:TransitionGuidance", defaults | changed, paper, cost)


def _schedule(shape):
    return _entry(f"cfg-{shape}", "guidance_schedules:ScheduledGuidance", {"shape": shape},
                  f"a baseline in {JAIN}", "1 ×")


def _perturbation(name, kind):
    return _entry(name, "caption_perturbation:CaptionPerturbation", {"kind": kind, "n": 4}, SOMEPALLI, "1 ×")


def _sd(*described):
    """An entry for Stable Diffusion 1 and 2 alone."""
    return _entry(*described, families=("sd",))


ENTRIES = {entry.name: entry for entry in (
    _transition("none", "Ho & Salimans 2022, arXiv 2207.12598", transition=1000),
    # τ belongs to Stable Diffusion 2.1 on LAION-10K and must be found anew for another model
    _transition("stp", cost="0.75 × at τ = 500", transition=500),
    _transition("og-stp", before=-2.0, transition=650),
    _transition("dtp", transition="dynamic"),
    _transition("og-dtp", before=-7.5, transition="dynamic"),
    _transition("og-stp-layout", OURS, before=-2.0, transition=650, colour=1.0),
    _transition("dtp-released", before=1.0, transition="dynamic", latest=-1, min_drop=0.0),
    _entry("og-dtp-released", "probe_transition:ProbeTransition", {"before": -7.5, "fallback_index": 5}, JAIN,
           "2 ×, half of it a probe"),
    _entry("dtp-calibrated", "calibrated_transition:CalibratedTransition",
           {"calibration": "", "before": -2.0, "transition": 650, "colour": None, "quantile": 0.95}, OURS, "1 ×",
           Need.CALIBRATION),
    _entry("og-recall", "recall_transition:RecallTransition",
           {"training": "", "before": -3.0, "transition": 600, "colour": 1.0, "warm_up": 880, "quantile": 0.8,
            "threshold": 0.0},
           OURS, "1 ×, and an encoding of each training image", Need.TRAINING_IMAGES,
           families=("sd", "sdxl")),
    *map(_schedule, SHAPES),
    _entry("beta-cfg", "guidance_schedules:BetaGuidance", {"a": 2.0, "b": 3.0, "gamma": 1.0},
           "Malarz et al. 2025, arXiv 2502.10574", "1 ×"),
    _entry("tcfg", "guidance_schedules:TangentialGuidance", {},
           "Kwon et al., CVPR 2025, arXiv 2503.18137", "1 ×"),
    # on prompts and their embeddings
    _perturbation("random-token", "random_token_addition"),
    _perturbation("random-number", "random_number_addition"),
    _perturbation("word-repeat", "caption_word_repetition"),
    _sd("caption-noise", "text_embedding:CaptionNoise", {"scale": 0.1}, SOMEPALLI, "1 ×"),
    _sd("prompt-optimisation", "text_embedding:PromptOptimisation",
        {"target": 3.0, "learning_rate": 0.05, "iterations": 10},
        "Wen et al., ICLR 2024, arXiv 2407.21720", "+ 2 to 20 rows", Need.GRADIENTS),
    _sd("prompt-reanchoring", "text_embedding:PromptReanchoring",
        {"target": 3.0, "full": 5.0, "learning_rate": 0.05, "iterations": 10},
        "Chen et al., CVPR 2025, arXiv 2504.18032",
        "up to 1.5 × and 4 to 20 rows where triggered, else + 2 rows", Need.GRADIENTS),
    _sd("pad-change", "text_embedding:PadChange", {"pad": "!", "zero_end": True}, KIM, "1 ×"),
    _sd("pad-mask", "text_embedding:PadMask", {"ratio": 0.7}, KIM, "1 ×"),
    # inside the cross-attention
    _sd("attention-mask", "cross_attention:AttentionMask", {"bos_scale": 1.25},
        "Ren et al., ECCV 2024, arXiv 2403.11052", "1 ×", Need.ATTENTION),
    _sd("spike-attenuation", "cross_attention:SpikeAttenuation", {"threshold": 0.01, "scale": 0.3}, ZHAO,
        "1 ×", Need.ATTENTION),
    _sd("guard", "cross_attention:Guard", {"threshold": 0.1, "scale": 0.3, "repulsion": 2.0}, ZHAO, "1.5 ×",
        Need.ATTENTION),
    # on the initial noise
    _sd("sharpness-step", "initial_noise:SharpnessStep",
        {"rate": 0.7, "radius": 50.0, "steps": 2, "transition": 900}, HAN,
        "+ 8 rows, − 1 a step before the transition"),
    _sd("noise-optimisation", "initial_noise:NoiseOptimisation",
        {"target": 0.9, "learning_rate": 0.01, "iterations": 1000}, HAN, "+ 2 to 2000 rows", Need.GRADIENTS),
    _sd("sharpness-aware-noise", "initial_noise:SharpnessAwareNoise",
        {"target": 8.2, "weight": 0.05, "learning_rate": 0.05, "iterations": 10, "budget": 8},
        "Jeon et al., ICML 2025, arXiv 2412.04140", "+ 4 to 320 rows", Need.GRADIENTS),
    # by the training images, and by single neurons
    _sd("amg", "training_image_guidance:AntiMemorizationGuidance",
        {"training": "", "despecification": 10.0, "dissimilarity": 100.0, "threshold": 0.5},
        "Chen et al., CVPR 2024, arXiv 2404.00922", "1 × and 1 or 2 decodings a step",
        Need.GRADIENTS, Need.TRAINING_IMAGES),
    _sd("nemo", "value_neurons:ValueNeurons", {"ordinary": "", "threshold": 0.428, "seeds": 10},
        "Hintersdorf et al., NeurIPS 2024, arXiv 2406.02366", "+ 10 rows, or hundreds where memorized",
        Need.ATTENTION, Need.ORDINARY_PROMPTS),  # which ship for the embedded model
)}


def list_mitigations() -> list[Entry]:
    """Every mitigation: name, settings, paper, cost, needs, families, and whether it is ready to run.

    Returns
    -------
    list of Entry
        In the order in which `rotescope mitigations` shows them.

    Examples
    --------
    >>> [entry.name for entry in list_mitigations()][:3]
    ['none', 'stp', 'og-stp']
    """
    return list(ENTRIES.values())


def get_mitigation(mitigation: str | Mitigation) -> Mitigation:
    """A mitigation by its name, perhaps with other settings than the authors'.

    Parameters
    ----------
    mitigation : str or Mitigation
        A name of `list_mitigations`; a name with settings, as in "og-stp:before=-3,transition=700"; or an
        object, which is given back.

    Returns
    -------
    Mitigation
        A frozen dataclass of settings. `mitigated(pipe, it)` puts it on a pipeline.

    Raises
    ------
    InputError
        For an unknown name, key or value, and for a setting that is missing, such as a file.

    Examples
    --------
    >>> get_mitigation("og-stp:before=-3").before
    -3.0
    """
    found = mitigation
    if isinstance(found, str):
        entry, settings = find_entry(found, ENTRIES, "mitigation")
        found = entry.make(**read_settings(entry, settings))
    if not hasattr(found, "check_pipeline"):
        raise InputError(f"{found!r} is no mitigation: give a name of list_mitigations, or a Mitigation")
    found.check()
    return found


def with_training(mitigation: str | Mitigation, training: str | Path | Manifest) -> Mitigation:
    """A mitigation that knows the training images, if it needs them and was not given any.

    Parameters
    ----------
    mitigation : str or Mitigation
        As `get_mitigation` takes it.
    training : str, Path or Manifest
        The training images: a folder, a file, a manifest's file, or a manifest.

    Returns
    -------
    Mitigation
        With `training` for its training images, or as it was where it needs none or has some.

    Raises
    ------
    InputError
        As get_mitigation, and where there is nothing at `training`.
    """
    if isinstance(mitigation, str):
        entry, settings = find_entry(mitigation, ENTRIES, "mitigation")
        given = read_settings(entry, settings)
        if Need.TRAINING_IMAGES in entry.needs and not given.get("training"):
            given["training"] = training
        return get_mitigation(entry.make(**given))
    if getattr(mitigation, "training", None) == "":
        return get_mitigation(replace(mitigation, **{"training": training}))
    return get_mitigation(mitigation)
