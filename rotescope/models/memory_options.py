"""What a user chooses where a model is larger than the memory of a card. No library is loaded here."""
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import ClassVar

from rotescope.common.errors import InputError
from rotescope.common.options import Options

OFFLOADS, QUANTIZATIONS = ("none", "model", "group"), ("none", "nf4")
LAST = {"last": True}  # under --help they stand behind a command's own options


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(Options):
    """What every command that opens a model lets a user choose alike, so that it fits."""
    HEADINGS: ClassVar = {"offload": "memory"}
    offload: str = field(default="none", metadata=LAST)
    """where weights wait: none (all on the device), model (a whole part in main memory until its turn), group (each block)"""
    quantize: str = field(default="none", metadata=LAST)
    """nf4: denoiser and large text encoders in 4 bits, by bitsandbytes on a GPU; the images are then others"""
    vae_slicing: bool = field(default=False, metadata=LAST)
    """decode a batch image by image"""
    vae_tiling: bool = field(default=False, metadata=LAST)
    """decode an image in overlapping tiles, which shows faintly at their seams"""
    attention_slicing: bool = field(default=False, metadata=LAST)
    """a UNet's attention in slices; saves nothing where PyTorch's own attention is at work, which is the default"""

    def check(self):
        super().check()
        check_word("offload", self.offload, OFFLOADS)
        check_quantize(self.quantize)
        device = getattr(self, "device", "auto")
        if self.offload == "model" and device == "cpu":
            raise InputError("--offload model moves parts from main memory to a GPU, and --device cpu has none: leave it out")
        if self.quantize != "none" and device == "cpu":
            raise InputError("--quantize nf4 needs a GPU, and --device cpu has none: leave it out")
        if self.quantize != "none" and self.offload == "group":
            raise InputError("--offload group does not move weights in 4 bits: take --offload model with --quantize nf4")


def check_word(option, given, known):
    """InputError for a value that is none of `known`."""
    if given not in known:
        raise InputError(f"{option}={given!r}: take one of {', '.join(known)}")


def check_quantize(kind):
    """InputError for a word that is none of QUANTIZATIONS, or where bitsandbytes is missing."""
    check_word("quantize", kind, QUANTIZATIONS)
    if kind != "none" and not find_spec("bitsandbytes"):
        raise InputError(f"--quantize {kind} needs bitsandbytes, which is not installed: pip install 'rotescope[gpu]'")
