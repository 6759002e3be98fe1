"""Rotescope: what did this fine-tune learn by rote?

    from rotescope import mitigated
    with mitigated(pipe, "og-dtp"):
        images = pipe(prompts).images
"""
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rotescope.mitigate.guidance import TransitionGuidance
    from rotescope.mitigate.hooks import mitigated

__version__ = "0.1.0"
__all__ = ["TransitionGuidance", "__version__", "mitigated"]

# In a wheel the four folders lie inside this package; in a clone they stand beside it (see CONTRIBUTING.md).
_here = Path(__file__).resolve().parent
_beside = [_here.parent / folder for folder in ("datasets", "train", "mitigate", "evaluate")]
if not (_here / "datasets").is_dir() and all(folder.is_dir() for folder in _beside):
    __path__.append(str(_here.parent))

_HOMES = {"TransitionGuidance": "rotescope.mitigate.guidance", "mitigated": "rotescope.mitigate.hooks"}


def __getattr__(name):
    """The public names load on first use, so that `rotescope --help` does not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
