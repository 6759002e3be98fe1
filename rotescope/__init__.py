"""Rotescope: what did this fine-tune learn by rote?

    from rotescope import mitigated
    with mitigated(pipe, "og-dtp"):
        images = pipe(prompts).images
"""
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rotescope.mitigate.adapters.pipeline_hook import mitigated
    from rotescope.mitigate.methods.transition import TransitionGuidance

__version__ = "0.1.0"
__all__ = ["TransitionGuidance", "__version__", "mitigated"]

_HOMES = {"TransitionGuidance": "rotescope.mitigate.methods.transition", "mitigated": "rotescope.mitigate.adapters.pipeline_hook"}


def __getattr__(name):
    """The public names load on first use, so that `rotescope --help` does not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
