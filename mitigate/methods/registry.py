"""Every mitigation by name: where it stands, what it is set to, where it comes from, what it costs and needs.

A new one is a file in this folder and an Entry here. The class is loaded when an object is wanted, and not before.
"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rotescope.mitigate.contract.catalogue import Entry, Need, find_entry, read_settings

if TYPE_CHECKING:
    from rotescope.datasets.manifest import Manifest
    from rotescope.mitigate.contract.mitigation import Mitigation

SOMEPALLI = "Somepalli et al., NeurIPS 2023, arXiv 2305.20086"
KIM = "Kim & No, CVPR 2026 Findings, arXiv 2605.02908"
HAN = "Han et al., NeurIPS 2025, arXiv 2510.08625"
ZHAO = "Zhao et al., ICML 2026, arXiv 2603.00133"
JAIN = "Jain et al., CVPR 2025, arXiv 2411.16738"
OURS = f"this project, after {JAIN}"
SD = ("sd",)
GRADIENTS, ATTENTION = frozenset((Need.GRADIENTS,)), frozenset((Need.ATTENTION,))
_SHAPES = ("invlinear", "linear", "cosine", "sine", "v-shape", "a-shape")


def _transition(name, paper=JAIN, cost="1 ×", **changed):
    """An entry of TransitionGuidance: its defaults, some of them changed."""
    defaults = {"before": 0.0, "transition": 500, "latest": 500, "after": None, "ordinary_gap": 0.0, "min_drop": 1e-4,
                "colour": None}
    return Entry(name=name, home="methods.transition:TransitionGuidance", settings=defaults | changed, paper=paper, cost=cost)


def _schedule(shape):
    return Entry(name=f"cfg-{shape}", home="methods.guidance_schedules:ScheduledGuidance", settings={"shape": shape},
                 paper=f"a baseline in {JAIN}", cost="1 ×")


def _perturbation(name, kind):
    return Entry(name=name, home="methods.caption_perturbation:CaptionPerturbation", settings={"kind": kind, "n": 4},
                 paper=SOMEPALLI, cost="1 ×")


ENTRIES = {entry.name: entry for entry in (
    _transition("none", "Ho & Salimans 2022, arXiv 2207.12598", transition=1000),
    # τ belongs to Stable Diffusion 2.1 on LAION-10K and must be found anew for another model
    _transition("stp", cost="0.75 × at τ = 500", transition=500),
    _transition("og-stp", before=-2.0, transition=650),
    _transition("dtp", transition="dynamic"),
    _transition("og-dtp", before=-7.5, transition="dynamic"),
    _transition("og-stp-layout", OURS, before=-2.0, transition=650, colour=1.0),
    _transition("dtp-released", before=1.0, transition="dynamic", latest=-1, min_drop=0.0),
    Entry(name="og-dtp-released", home="methods.probe_transition:ProbeTransition",
          settings={"before": -7.5, "fallback_index": 5}, paper=JAIN, cost="2 ×, half of it a probe"),
    Entry(name="dtp-calibrated", home="methods.calibrated_transition:CalibratedTransition",
          settings={"calibration": "", "before": -2.0, "transition": 650, "quantile": 0.95}, paper=OURS, cost="1 ×",
          needs=frozenset((Need.CALIBRATION,))),
    Entry(name="og-recall", home="methods.recall_transition:RecallTransition",
          settings={"training": "", "before": -3.0, "transition": 600, "colour": 1.0, "warm_up": 880, "quantile": 0.8,
                    "threshold": 0.0},
          paper=OURS, cost="1 ×, and an encoding of each training image", needs=frozenset((Need.TRAINING_IMAGES,)),
          families=("sd", "sdxl")),
    *map(_schedule, _SHAPES),
    Entry(name="beta-cfg", home="methods.guidance_schedules:BetaGuidance", settings={"a": 2.0, "b": 3.0, "gamma": 1.0},
          paper="Malarz et al. 2025, arXiv 2502.10574", cost="1 ×"),
    Entry(name="tcfg", home="methods.guidance_schedules:TangentialGuidance",
          paper="Kwon et al., CVPR 2025, arXiv 2503.18137", cost="1 ×"),
    # on prompts and their embeddings
    _perturbation("random-token", "random_token_addition"),
    _perturbation("random-number", "random_number_addition"),
    _perturbation("word-repeat", "caption_word_repetition"),
    Entry(name="caption-noise", home="methods.text_embedding:CaptionNoise", settings={"scale": 0.1}, paper=SOMEPALLI, cost="1 ×",
          families=SD),
    Entry(name="prompt-optimisation", home="methods.text_embedding:PromptOptimisation",
          settings={"target": 3.0, "learning_rate": 0.05, "iterations": 10},
          paper="Wen et al., ICLR 2024, arXiv 2407.21720", cost="+ 2 to 20 rows", needs=GRADIENTS, families=SD),
    Entry(name="prompt-reanchoring", home="methods.text_embedding:PromptReanchoring",
          settings={"target": 3.0, "full": 5.0, "learning_rate": 0.05, "iterations": 10},
          paper="Chen et al., CVPR 2025, arXiv 2504.18032",
          cost="up to 1.5 × and 4 to 20 rows where triggered, else + 2 rows", needs=GRADIENTS, families=SD),
    Entry(name="pad-change", home="methods.text_embedding:PadChange", settings={"pad": "!", "zero_end": True}, paper=KIM,
          cost="1 ×", families=SD),
    Entry(name="pad-mask", home="methods.text_embedding:PadMask", settings={"ratio": 0.7}, paper=KIM, cost="1 ×", families=SD),
    # inside the cross-attention
    Entry(name="attention-mask", home="methods.cross_attention:AttentionMask", settings={"bos_scale": 1.25},
          paper="Ren et al., ECCV 2024, arXiv 2403.11052", cost="1 ×", needs=ATTENTION, families=SD),
    Entry(name="spike-attenuation", home="methods.cross_attention:SpikeAttenuation", settings={"threshold": 0.01, "scale": 0.3},
          paper=ZHAO, cost="1 ×", needs=ATTENTION, families=SD),
    Entry(name="guard", home="methods.cross_attention:Guard", settings={"threshold": 0.1, "scale": 0.3, "repulsion": 2.0},
          paper=ZHAO, cost="1.5 ×", needs=ATTENTION, families=SD),
    # on the initial noise
    Entry(name="sharpness-step", home="methods.initial_noise:SharpnessStep",
          settings={"rate": 0.7, "radius": 50.0, "steps": 2, "transition": 900}, paper=HAN,
          cost="+ 8 rows, − 1 a step before the transition", families=SD),
    Entry(name="noise-optimisation", home="methods.initial_noise:NoiseOptimisation",
          settings={"target": 0.9, "learning_rate": 0.01, "iterations": 1000}, paper=HAN, cost="+ 2 to 2000 rows",
          needs=GRADIENTS, families=SD),
    Entry(name="sharpness-aware-noise", home="methods.initial_noise:SharpnessAwareNoise",
          settings={"target": 8.2, "weight": 0.05, "learning_rate": 0.05, "iterations": 10, "budget": 8},
          paper="Jeon et al., ICML 2025, arXiv 2412.04140", cost="+ 4 to 320 rows", needs=GRADIENTS, families=SD),
    # by the training images, and by single neurons
    Entry(name="amg", home="methods.training_image_guidance:AntiMemorizationGuidance",
          settings={"training": "", "despecification": 10.0, "dissimilarity": 100.0, "threshold": 0.5},
          paper="Chen et al., CVPR 2024, arXiv 2404.00922", cost="1 × and 1 or 2 decodings a step",
          needs=frozenset((Need.GRADIENTS, Need.TRAINING_IMAGES)), families=SD),
    Entry(name="nemo", home="methods.value_neurons:ValueNeurons", settings={"ordinary": "", "threshold": 0.428, "seeds": 10},
          paper="Hintersdorf et al., NeurIPS 2024, arXiv 2406.02366", cost="+ 10 rows, or hundreds where memorized",
          needs=frozenset((Need.ATTENTION, Need.ORDINARY_PROMPTS)), families=SD),  # which ship for the embedded model
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
        A name of `list_mitigations`; a name with settings, as in "og-stp:before=-3,transition=700"; or an object, which
        is given back.

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
