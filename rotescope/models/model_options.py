"""Which model a command opens: options that load no library."""
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

DTYPE_NAMES = ("fp32", "fp16", "bf16")
BASE = (Path(__file__).resolve().parent.parent / "train" / "base").resolve()  # in a clone, rotescope/train is a link


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What every command that opens a model lets a user choose alike."""
    HEADINGS: ClassVar = {"model": "the model"}
    model: str = str(BASE)
    """model folder in diffusers' layout (Stable Diffusion 1, 2, XL or 3, FLUX, PixArt), or its name on the hub"""
    lora: str | None = None
    """LoRA file or folder, on top of the model"""
    dtype: str = "fp32"
    """number format of the weights: fp32, fp16 or bf16"""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1, …: where the model runs"""
