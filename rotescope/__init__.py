"""Rotescope: what did this fine-tune learn by rote?

    from rotescope import audit, mitigated

    report = audit(model="my-model", lora="my.safetensors", train_data="photos", mitigations=["none", "og-stp"])
    report.verdict                                     # outcome, headline, rules
    report["none"]["ungrouped"].copy_rate               # value, low, high, n_images, n_prompts

    with mitigated(pipe, "og-stp"):
        images = pipe(prompts).images
"""
from importlib import import_module
from typing import TYPE_CHECKING

from rotescope.common.quiet_libraries import hush_import

if TYPE_CHECKING:
    from rotescope.common.errors import InputError as InputError
    from rotescope.common.errors import RunError as RunError
    from rotescope.datasets.inspection.preflight import preflight as preflight
    from rotescope.datasets.manifest import Manifest as Manifest
    from rotescope.datasets.readers.sources import load_manifest as load_manifest
    from rotescope.evaluate.measurement.copy_rate import CopyRate as CopyRate
    from rotescope.evaluate.measurement.evaluation import score as score
    from rotescope.evaluate.report.report import Report as Report
    from rotescope.library import audit as audit
    from rotescope.library import compare as compare
    from rotescope.library import finetune as finetune
    from rotescope.library import repair as repair
    from rotescope.mitigate.adapters.guider import guider_for as guider_for
    from rotescope.mitigate.adapters.pipeline_hook import mitigated as mitigated
    from rotescope.mitigate.detectors.prompt_scores import detect as detect
    from rotescope.mitigate.detectors.registry import get_detector as get_detector
    from rotescope.mitigate.detectors.registry import list_detectors as list_detectors
    from rotescope.mitigate.methods.registry import get_mitigation as get_mitigation
    from rotescope.mitigate.methods.registry import list_mitigations as list_mitigations
    from rotescope.mitigate.methods.transition import TransitionGuidance as TransitionGuidance
    from rotescope.mitigate.prompts.prompt import Prompt as Prompt
    from rotescope.mitigate.sampling.generation import generate as generate

__version__ = "0.1.0"
hush_import()

_HOMES = {  # public name -> its module
    "audit": "library", "compare": "library", "finetune": "library", "repair": "library",
    "preflight": "datasets.inspection.preflight", "Manifest": "datasets.manifest",
    "load_manifest": "datasets.readers.sources",
    "score": "evaluate.measurement.evaluation", "Report": "evaluate.report.report", "CopyRate": "evaluate.measurement.copy_rate",
    "generate": "mitigate.sampling.generation", "Prompt": "mitigate.prompts.prompt",
    "mitigated": "mitigate.adapters.pipeline_hook", "guider_for": "mitigate.adapters.guider",
    "TransitionGuidance": "mitigate.methods.transition",
    "get_mitigation": "mitigate.methods.registry", "list_mitigations": "mitigate.methods.registry",
    "detect": "mitigate.detectors.prompt_scores",
    "get_detector": "mitigate.detectors.registry", "list_detectors": "mitigate.detectors.registry",
    "InputError": "common.errors", "RunError": "common.errors",
}
__all__ = ["__version__", *_HOMES]  # noqa: PLE0604


def __getattr__(name):
    """The public names load on first use, so that `rotescope --help` does not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(f"rotescope.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
