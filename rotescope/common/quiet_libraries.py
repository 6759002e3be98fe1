"""What libraries say of themselves and a user can do nothing about. Light: it loads none of them."""
import logging
import os
import sys
import warnings
from contextlib import contextmanager

TALKERS = (r"(torch|torchmetrics|torchvision|torch_fidelity|diffusers|transformers|accelerate|peft|open_clip|bitsandbytes"
           r"|timm)(\.|$)")


def hush_warnings():
    """For a command: libraries' warnings to programmers are not shown, unless python -W or PYTHONWARNINGS asks for them."""
    if sys.warnoptions:
        return
    for category in (UserWarning, FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category, module=TALKERS)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    hush_import()


def hush_import():
    """bitsandbytes remarks, whenever diffusers loads it, on kernels that a CPU could have."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@contextmanager
def quiet():
    """Without the libraries' own bars and remarks while a model is loaded or saved."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging
    libraries = (diffusers_logging, transformers_logging)
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    levels = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity(logging.CRITICAL)  # what they call an error they raise, too
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
        for library in shown:
            library.enable_progress_bar()
